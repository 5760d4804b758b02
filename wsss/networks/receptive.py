"""What a fully convolutional network sees and stores: the reach of an output value, and the memory of a forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss.arrays import Float

_SIDE = 256
_STRIPE = 64
# above this share of the largest value, an output depends on pixels beyond the reach
_ROUNDING = 1e-4
# at the peak, a pass holds the input and output of its largest convolution, and copies of them by residual sums and activations
_COPIES = 3


class Reach(NamedTuple):
    """What an output value of a network depends on.

    Attributes:
        stride: input pixels between two output values.
        radius: input pixels to each side that an output value depends on at most, a multiple of the stride.
        bytes_per_pixel: memory of a forward pass for each pixel of the input.
        local: whether that is all; not so for networks with attention, squeeze-and-excitation or other means over the picture.
    """

    stride: int
    radius: int
    bytes_per_pixel: float
    local: bool


@torch.inference_mode()
def reach(network: nn.Module, maps: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c hs ws"]]) -> Reach:
    """The reach of the output of `maps`, which calls the network, in evaluation mode.

    The radius is the sum over all convolutions and poolings, so it is too large for networks with parallel branches. Whether it is enough is tried
    out on a stripe of noise, whose far half is changed.
    """
    some = next(network.parameters())
    like: Any = {"device": some.device, "dtype": some.dtype}
    radius, largest = 0.0, 0.0

    def after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal radius, largest
        given = inputs[0]
        kernel, dilation = (
            max(value) if isinstance(value, tuple) else value
            for value in (module.kernel_size, getattr(module, "dilation", 1))
        )
        radius += (kernel - 1) / 2 * dilation * _SIDE / min(given.shape[-2:])
        largest = max(largest, (given.numel() + output.numel()) * given.element_size() / _SIDE**2)

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    hooks = [module.register_forward_hook(after) for module in network.modules() if isinstance(module, kinds)]
    try:
        small = maps(torch.zeros(1, 3, _SIDE, _SIDE, **like))
    finally:
        for hook in hooks:
            hook.remove()
    stride = round(_SIDE / min(small.shape[-2:]))
    padded = (int(radius) // stride + 1) * stride
    noise = torch.randn(1, 3, _STRIPE, 2 * padded + 8 * stride, generator=torch.Generator().manual_seed(0)).to(**like)
    changed = noise.clone()
    changed[..., padded + 4 * stride :] = torch.flip(noise, (0, 3))[..., padded + 4 * stride :] + 1
    before, after_change = maps(noise)[..., :4], maps(changed)[..., :4]
    difference = (before - after_change).abs().max() / before.abs().max().clamp(min=1e-12)
    return Reach(stride, padded, _COPIES * largest, bool(difference < _ROUNDING))


@torch.inference_mode()
def tiled(
    compute: Callable[[slice, slice], Float[Tensor, "b c _ _"]], size_hw: tuple[int, int], reach: Reach, core: int
) -> Float[Tensor, "b c hs ws"]:
    """The output of a network for a whole picture, computed in tiles that overlap by its reach, so that it is the same up to rounding.

    Args:
        compute: the output for a part of the picture, from its rows and columns.
        size_hw: height and width of the picture.
        reach: of the network.
        core: side of the tiles without the overlap, a multiple of the stride.
    """
    height, width = size_hw
    rows = []
    for top in range(0, height, core):
        row = []
        for left in range(0, width, core):
            above, before = min(reach.radius, top), min(reach.radius, left)
            bottom, right = min(top + core + reach.radius, height), min(left + core + reach.radius, width)
            out = compute(slice(top - above, bottom), slice(left - before, right))
            y, x, n = above // reach.stride, before // reach.stride, core // reach.stride
            # the last tiles keep what lies beyond the last full stride
            down = out.shape[-2] if top + core >= height else y + n
            across = out.shape[-1] if left + core >= width else x + n
            row.append(out[..., y:down, x:across].clone())
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)
