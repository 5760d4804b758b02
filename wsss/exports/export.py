"""The interface of an export format: it writes masks for another program."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from wsss.arguments import required
from wsss.options import OutOptions


@dataclasses.dataclass(frozen=True)
class ExportOptions(OutOptions):
    """Options that all exports share."""

    masks: Path = required()
    """folder of masks, as `wsss predict` and `wsss refine` write them"""


Options = TypeVar("Options", bound=ExportOptions)


@dataclasses.dataclass(frozen=True)
class Export(Generic[Options]):
    """An export format, available as the command `wsss export NAME`.

    Attributes:
        name: name of the command.
        about: what it writes, as a noun phrase for the help page.
        options: dataclass of its options.
        write: writes the masks below `options.out`, and returns the path of the result.
    """

    name: str
    about: str
    options: type[Options]
    write: Callable[[Options], Path]
