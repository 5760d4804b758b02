"""Class activation maps of any classifier with a linear head (Zhou et al., CVPR 2016).

A classifier that averages its last feature map f and ends in a linear layer has the logits y_c = w_c · mean f + b_c. The mean
is linear too, so M_c(x, y) = w_c · f(x, y) is the contribution of each position to y_c. The layer w and the feature map f are
found by running the network once, and accepted only if they reproduce y.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import BadInput

# maximum difference between the logits and those computed from the map, relative to the largest: rounding in float16
_TOLERANCE = 1e-2

_EXPECTED = "a classifier whose logits are a linear layer applied to the mean of its last feature map, such as a ResNet"
_DO = "Use a network that ends in global average pooling and one linear layer, or train one with wsss.methods.cam."


class _Output(NamedTuple):
    """A tensor returned by the n-th call of a module in one forward pass."""

    module: nn.Module
    call: int
    value: Tensor


class LinearHead(nn.Module):
    """Adapts a classifier to the localizer of class activation maps.

    Args:
        network: in evaluation mode, returns logits (b, c).
        example: an input picture; the larger, the better.

    Attributes:
        n_classes: c.

    Raises:
        BadInput: there is no such layer or feature map, or the network does not accept the picture.
    """

    def __init__(self, network: nn.Module, example: Float[Tensor, "1 3 h w"]) -> None:
        super().__init__()
        if next(network.parameters(), None) is None:
            raise BadInput(type(network).__name__, "no weights", _EXPECTED, _DO)
        self.network = network
        logits, outputs = self._run(example)
        self.n_classes = logits.shape[1]
        self.head = self._find_head(outputs)
        self.feature, self.rectified, self.channels_last = self._find_feature(logits, outputs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.network.parameters(recurse)

    @torch.inference_mode()
    def feature_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The last feature map f, as a list."""
        _, outputs = self._run(image, self.feature.module)
        value = next(output.value for output in outputs if output.call == self.feature.call)
        return [_channels_first(value, self.rectified, self.channels_last)]

    @torch.inference_mode()
    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, before ReLU."""
        layer = _linear(self.head)
        assert layer is not None
        return F.conv2d(self.feature_maps(image)[0], layer[0][:, :, None, None]).float()

    @torch.inference_mode()
    def _run(self, image: Tensor, of: nn.Module | None = None) -> tuple[Tensor, list[_Output]]:
        """The logits, and the outputs of one module, or of all, in the order in which they returned."""
        outputs: list[_Output] = []
        counts: dict[nn.Module, int] = {}

        def record(module: nn.Module, inputs: object, output: object) -> None:
            call = counts[module] = counts.get(module, -1) + 1
            if isinstance(output, Tensor):
                outputs.append(_Output(module, call, output))

        watched = self.network.modules() if of is None else [of]
        handles = [module.register_forward_hook(record) for module in watched]
        kind, size = type(self.network).__name__, f"{image.shape[2]}x{image.shape[3]}"
        try:
            logits = self.network(image.to(next(self.network.parameters()).dtype))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            message = (str(error).splitlines() or [""])[0][:200]
            expected = f"a network for pictures of {size} (height x width) with {image.shape[1]} channels"
            do = "If it accepts only one size, resize the picture to it and give scales=(1.0,)."
            raise BadInput(kind, f"{type(error).__name__} ({message})", expected, do) from error
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = f"a tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise BadInput(kind, f"{found} as output", "logits (pictures, classes)", "Wrap it to return only these.")
        return logits, outputs

    def _find_head(self, outputs: list[_Output]) -> nn.Module:
        for output in reversed(outputs):
            if (layer := _linear(output.module)) and len(layer[0]) == self.n_classes:
                return output.module
        last = next((type(o.module).__name__ for o in reversed(outputs) if not len(list(o.module.children()))), "none")
        raise BadInput(
            type(self.network).__name__,
            f"no linear layer for its {self.n_classes} classes (the last layer is {last})",
            _EXPECTED,
            _DO,
        )

    def _find_feature(self, logits: Tensor, outputs: list[_Output]) -> tuple[_Output, bool, bool]:
        """The feature map that reproduces the logits, whether it needs a ReLU, and whether its channels come last."""
        layer = _linear(self.head)
        assert layer is not None
        weight, bias = layer
        channels, tiny = weight.shape[1], False
        for output in reversed(outputs):
            for last in (False, True):
                if output.value.ndim != 4 or output.value.shape[3 if last else 1] != channels:
                    continue
                for rectified in (False, True):
                    feature = _channels_first(output.value, rectified, last)
                    if not _close(F.linear(feature.mean((2, 3)), weight, bias), logits):
                        continue
                    if feature.shape[2] * feature.shape[3] > 1:
                        # do not keep the tensor itself
                        return output._replace(value=logits[:0]), rectified, last
                    tiny = True
        kind, name = type(self.network).__name__, type(self.head).__name__
        tokens = next((o.value for o in outputs if o.value.ndim == 3 and o.value.shape[2] == channels), None)
        if tokens is not None:
            found = f"a list of tokens {tuple(tokens.shape)} before the head, as in a vision transformer, and no feature map"
        else:
            found = f"no feature map of several cells whose mean is the input of its last layer ({name} with {channels} channels)"
        do = f"{_DO} If it is such a network, the picture is too small: enlarge it." if tiny else _DO
        raise BadInput(kind, found, _EXPECTED, do)


def _linear(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weights (c, d) and bias of a linear layer or of a 1x1 convolution; None for other layers."""
    if isinstance(module, nn.Linear):
        return module.weight, module.bias
    if (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.stride == (1, 1)
    ):
        return module.weight[:, :, 0, 0], module.bias
    return None


def _channels_first(feature: Tensor, rectified: bool, last: bool) -> Tensor:
    feature = feature.permute(0, 3, 1, 2) if last else feature
    return feature.relu() if rectified else feature


def _close(computed: Tensor, logits: Tensor) -> bool:
    scale = float(logits.abs().max())
    return bool((computed - logits).abs().max() <= _TOLERANCE * scale) and scale > 0
