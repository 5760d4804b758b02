"""Export formats: one module each, registered by a line here."""

from typing import Any

from wsss.exports.export import Export
from wsss.exports.voc_server import VOC_SERVER

EXPORTS: dict[str, Export[Any]] = {
    export.name: export
    for export in (
        VOC_SERVER,
    )
}  # fmt: skip
