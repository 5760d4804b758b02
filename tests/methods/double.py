"""A method trained in float64, for comparisons of one process with several."""

import dataclasses
from functools import partial
from typing import Any

from torch import nn

from wsss.data.images import Images
from wsss.stages.train import Training


@dataclasses.dataclass(frozen=True)
class Double:
    """Settings of a training in float64, whose rounding turns no draw or assignment over and cannot hide a wrong gradient."""

    settings: Any

    @property
    def training(self) -> Training:
        return self.settings.training

    def trainable(self, images: Images) -> nn.Module:
        learning = self.settings.trainable(images).double()
        learning.examples = partial(_in_double, learning.examples)
        return learning


def _in_double(examples, index, rng):
    return {name: value.double() for name, value in examples(index, rng).items()}
