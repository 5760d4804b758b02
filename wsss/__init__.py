"""Weakly supervised semantic segmentation: from image-level tags to masks and a trained segmenter.

The names below are the public interface; each is imported when it is first used, since importing torch takes seconds.
`docs/python.md` shows how to use them. Everything else is imported from its module, for example `wsss.methods.cam`.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wsss.data.images import Dataset, Images
    from wsss.data.open import open_dataset
    from wsss.errors import BadInput
    from wsss.library import (
        background_threshold,
        cams,
        clip_es,
        dense_crf,
        export,
        import_masks,
        pseudo_mask,
        random_walk,
    )
    from wsss.metrics import score
    from wsss.predictor import load

_HOMES = {
    "BadInput": "wsss.errors",
    "Dataset": "wsss.data.images",
    "Images": "wsss.data.images",
    "background_threshold": "wsss.library",
    "cams": "wsss.library",
    "clip_es": "wsss.library",
    "dense_crf": "wsss.library",
    "export": "wsss.library",
    "import_masks": "wsss.library",
    "load": "wsss.predictor",
    "open_dataset": "wsss.data.open",
    "pseudo_mask": "wsss.library",
    "random_walk": "wsss.library",
    "score": "wsss.metrics",
}

__all__ = [
    "BadInput",
    "Dataset",
    "Images",
    "background_threshold",
    "cams",
    "clip_es",
    "dense_crf",
    "export",
    "import_masks",
    "load",
    "open_dataset",
    "pseudo_mask",
    "random_walk",
    "score",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
