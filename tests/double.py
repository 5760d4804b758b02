"""Trainings in float64, for comparisons of one process with several."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from wsss.data.images import Images
from wsss.stages.train import Training


@dataclasses.dataclass(frozen=True)
class Double:
    """Settings of a training in float64, whose rounding turns no draw over and cannot hide a wrong gradient; without dropout,
    which draws by process."""

    settings: Any

    @property
    def title(self) -> str:
        return str(self.settings.title)

    @property
    def training(self) -> Training:
        return self.settings.training

    def trainable(self, images: Images, **inputs: Path) -> torch.nn.Module:
        learning = self.settings.trainable(images, **inputs).double()
        for layer in learning.modules():
            if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
                layer.p = 0
        learning.register_forward_pre_hook(_in_double)
        return learning


def _in_double(_: Any, given: tuple[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in given[0].items()}
