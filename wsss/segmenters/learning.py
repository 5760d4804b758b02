"""What all segmenters have in common: an objective on pseudo masks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput
from wsss.objective import Groups, Objective

N = TypeVar("N", bound=nn.Module)


class View(Protocol):
    """What a training picture goes through, with its mask."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
        """A random view of both; all its chance comes from `rng`."""


class SegmenterObjective(Objective):
    """A segmenter and its losses on pseudo masks.

    Args:
        network: the segmenter.
        losses: named terms of the network, a batch of its images, and their labels; their sum is minimised.
        images: the pictures, whose masks of the same names lie in the folder `masks`.
        view: of the pictures.
        metadata: what is needed to use the network later, besides its classes; `kind` is the name of the segmenter.
        groups: of parameters; by default one, of all trainable weights.

    Raises:
        BadInput: no mask holds any class.
    """

    def __init__(
        self,
        network: N,
        losses: Callable[[N, Tensor, Tensor], dict[str, Float[Tensor, ""]]],
        images: Images,
        masks: Path,
        view: View,
        metadata: dict[str, Any],
        groups: Groups | None = None,
    ) -> None:
        _check_target(images, masks)
        examples = partial(_example, images, masks, view)
        super().__init__(network, examples, {**metadata, "classes": list(images.class_names)}, groups)
        self.losses = partial(losses, network)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        return self.losses(batch["image"], batch["label"])


def _check_target(images: Images, masks: Path) -> None:
    """Raise BadInput where there is nothing to learn; mostly the first mask shows that there is."""
    held: set[int] = set()
    for index in range(len(images)):
        held.update(np.unique(images.read_with(masks, index)[1]).tolist())
        if held - {0, IGNORE}:
            return
    values = {frozenset({0}): "background alone", frozenset({IGNORE}): "255 alone, which is ignored"}
    raise BadInput(
        masks,
        f"masks that hold {values.get(frozenset(held), 'background and 255 alone')}, in all of {len(images)} pictures",
        f"masks with classes ({', '.join(images.class_names[:5])}{', ...' if len(images.class_names) > 5 else ''}) to learn from",
        "Look at the maps (report.html): lower the threshold of refine, or train the classifier for longer.",
    )


def _example(images: Images, masks: Path, view: View, index: int, rng: np.random.Generator) -> dict[str, Any]:
    seen, label = view(*images.read_with(masks, index), rng)
    return {"image": torch.from_numpy(seen), "label": torch.from_numpy(label.astype(np.int64))}
