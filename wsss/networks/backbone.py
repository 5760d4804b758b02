"""Feature extractors by name: our ResNets under their published names, and everything that timm knows."""

import re
from typing import Any, Protocol, cast

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsss.errors import BadInput
from wsss.networks.resnet import DEPTHS, ResNet
from wsss.networks.resnet38 import ResNet38

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(Protocol):
    """What a backbone offers besides being a module.

    Attributes:
        channels: of each feature, the stem's first.
        strides: of each feature.
    """

    channels: list[int]
    strides: list[int]

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        """The parameters of everything that feature number `feature` is made with."""

    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features of the stem and of the stages; the last is the deepest."""


class TimmBackbone(nn.Module):
    """Any timm model that can give its features.

    Args:
        name: timm's name of the model.
        output_stride: stride of the deepest feature: 8, 16 or 32.
    """

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        try:
            self.body = timm.create_model(name, features_only=True, pretrained=False)
            if cast(Any, self.body).feature_info.reduction()[-1] != output_stride:
                self.body = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=False)
        except (RuntimeError, TypeError, NotImplementedError, AttributeError, AssertionError) as error:
            close = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "resnet50, resnet10t, convnext_atto"
            raise BadInput(
                f"backbone {name}",
                f"a model that cannot be made with features at stride {output_stride} ({type(error).__name__}: {error})",
                f"resnet{{{','.join(map(str, DEPTHS))}}} or a timm model that offers features_only and output_stride",
                f"Try one of: {close}.",
            ) from error
        self.features = cast(Any, self.body).feature_info
        self.channels: list[int] = self.features.channels()
        self.strides: list[int] = self.features.reduction()
        # images come with ImageNet's mean and deviation; a third of timm's pretrained models want others
        config = cast(Any, timm.models.get_pretrained_cfg(name))
        mean, std = (
            torch.tensor(values)[:, None, None] for values in ((config.mean, config.std) if config else _IMAGENET)
        )
        ours = [torch.tensor(values)[:, None, None] for values in _IMAGENET]
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", ours[1] / std, persistent=False)
        self.register_buffer("shift", (ours[0] - mean) / std, persistent=False)
        if self.strides[-1] != output_stride:
            raise BadInput(
                f"backbone {name}",
                f"a deepest feature at stride {self.strides[-1]}",
                f"stride {output_stride}",
                "Choose another backbone or that output stride.",
            )

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        modules = self.features.module_name()
        if end := self._positions(modules[feature]):
            return list(self.body.parameters())[: end[-1] + 1]
        # an activation gives this feature: everything before the next one's module
        if feature + 1 < len(modules) and (following := self._positions(modules[feature + 1])):
            return list(self.body.parameters())[: following[0]]
        raise BadInput(
            f"backbone {type(self.body).__name__}",
            f"no parameters below {modules[feature]}",
            "a backbone whose first stages can be told apart, since they are to be frozen",
            "Train all of it (frozen: nothing), or choose another backbone.",
        )

    def _positions(self, module: str) -> list[int]:
        # timm flattens containers in some feature networks: blocks.1 becomes blocks_1
        prefixes = (f"{module}.", f"{module.replace('.', '_')}.")
        names = [name for name, _ in self.body.named_parameters()]
        return [position for position, name in enumerate(names) if name.startswith(prefixes)]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        features = self.body(image * self.scale + self.shift)
        # transformers give their channels last
        return [f if f.shape[1] == c else f.permute(0, 3, 1, 2) for f, c in zip(features, self.channels, strict=True)]


def create_backbone(name: str, output_stride: int = 16) -> ResNet | ResNet38 | TimmBackbone:
    """A backbone with new weights.

    Args:
        name: `resnet18` .. `resnet152` give torchvision's layers and state-dict names, `resnet38` gives PSA's (with an n-th
            of the channels as `resnet38-narrow<n>`); every other name is timm's.
        output_stride: of the deepest feature. A ResNet at 16 has no dilation at all, as in IRNet and CLIMS; at 8 its
            layer3 and layer4 have dilation 2, as in CLIMS' unused variant. ResNet-38 has 8.

    Raises:
        BadInput: there is no such backbone, or it does not give that stride.
    """
    if output_stride not in (8, 16, 32):
        raise BadInput(f"output stride of {name}", str(output_stride), "8, 16 or 32", "Choose one of these.")
    if match := re.fullmatch(r"resnet38(?:-narrow(\d+))?", name):
        divisor = int(match[1] or 1)
        if divisor < 1 or 64 % divisor:
            raise BadInput(
                f"backbone {name}", f"a width divided by {divisor}", "1, 2, 4, 8, 16, 32 or 64", "Choose one of these."
            )
        if output_stride != 8:
            raise BadInput(f"output stride of {name}", str(output_stride), "8, the only one it has", "Set it to 8.")
        return ResNet38(divisor)
    match = re.fullmatch(r"resnet(\d+)", name)
    if match and int(match[1]) in DEPTHS:
        layouts = {32: ((1, 2, 2, 2), (1, 1, 1, 1)), 16: ((1, 2, 2, 1), (1, 1, 1, 1)), 8: ((1, 2, 1, 1), (1, 1, 2, 2))}
        return ResNet(int(match[1]), *layouts[output_stride])
    return TimmBackbone(name, output_stride)


def freeze_batch_norm(network: nn.Module) -> None:
    """Let every batch norm use its running statistics; call it after each `train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
