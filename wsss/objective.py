"""Training objectives: a network, its losses, its training examples, and how its weights are written."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from wsss.arrays import Float
from wsss.networks.backbone import freeze_batch_norm
from wsss.networks.body import ParamGroup
from wsss.stages.train import Examples, Training
from wsss.weights import WEIGHTS, write_weights

# makes the parameter groups of an optimiser from a learning rate and a weight decay
Groups = Callable[[float, float], list[ParamGroup]]


class Objective(nn.Module, abc.ABC):
    """A network and its losses. A method, refiner or segmenter implements `forward`.

    Args:
        network: its parameters have their published names.
        examples: makes the training example of a picture.
        metadata: written with the weights, so that they can be used without any settings; `kind` names the type of network.
        groups: makes the parameter groups.
        keep_statistics: freeze the running statistics of all batch norms.
        stop_epochs: the epoch after which training stops, where the published weights are not those of the last; None: the last.
        constant: tensors that are written with the weights.

    Attributes:
        repeats: how often each picture occurs in an epoch; None: once.
    """

    def __init__(
        self,
        network: nn.Module,
        examples: Examples,
        metadata: dict[str, Any],
        groups: Groups | None = None,
        *,
        keep_statistics: bool = False,
        stop_epochs: int | None = None,
        constant: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.examples, self.metadata = network, examples, metadata
        self.groups: Groups = groups or partial(one_group, network)
        self.keep_statistics, self.stop_epochs = keep_statistics, stop_epochs
        self.repeats: Sequence[int] | None = None
        self.constant = dict(constant or {})

    @abc.abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms, whose sum is minimised."""

    def train(self, mode: bool = True) -> "Objective":
        """Set the mode of all layers, except batch norms whose statistics are frozen."""
        super().train(mode)
        if self.keep_statistics:
            freeze_batch_norm(self.network)
        return self

    def param_groups(self, training: Training) -> list[ParamGroup]:
        """Parameter groups with their learning rates and weight decays."""
        return self.groups(training.lr, training.weight_decay)

    def write(self, out: Path) -> None:
        """Write the network and its metadata to the folder `out`."""
        write_weights(out / WEIGHTS, {**self.network.state_dict(), **self.constant}, self.metadata)


def one_group(network: nn.Module, lr: float, weight_decay: float) -> list[ParamGroup]:
    """All trainable parameters in one group."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [{"params": parameters, "lr": lr, "weight_decay": weight_decay}]


class BackboneAndHead(Protocol):
    """A network that consists of a backbone, `body`, and a head."""

    @property
    def body(self) -> nn.Module:
        """The backbone."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""


def body_and_head(network: BackboneAndHead, head_lr: float, lr: float, weight_decay: float) -> list[ParamGroup]:
    """Two groups of trainable parameters: the backbone with the learning rate `lr`, all others with `head_lr * lr`."""
    body = [parameter for parameter in network.body.parameters() if parameter.requires_grad]
    in_body = {id(parameter) for parameter in body}
    head = [value for value in network.parameters() if value.requires_grad and id(value) not in in_body]
    return [
        {"params": body, "lr": lr, "weight_decay": weight_decay},
        {"params": head, "lr": lr * head_lr, "weight_decay": weight_decay},
    ]
