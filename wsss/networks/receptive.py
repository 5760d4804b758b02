"""What a fully convolutional network sees and stores: the reach of an output value, and the memory of a forward pass."""

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
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
# bytes of a forward pass for each pixel of its input, above those of common backbones
ROUGH = 600
# sides of tiles without their overlap, in pixels
_LARGEST_TILE, _SMALLEST_TILE = 2048, 256


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

    The radius is the sum over all convolutions and poolings, of which those with the same input count once: it may be too large for networks with
    parallel branches of several layers. Whether it is enough is tried out on a stripe of noise, whose far half is changed.
    """
    some = next(network.parameters())
    like: Any = {"device": some.device, "dtype": some.dtype}
    largest = 0.0
    radii: defaultdict[int, float] = defaultdict(float)
    alive = []  # so that no other tensor gets the same id
    here = threading.get_ident()

    def after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        if threading.get_ident() != here:  # the network may be in use
            return
        given = inputs[0]
        kernel, dilation = (
            max(value) if isinstance(value, tuple) else value
            for value in (module.kernel_size, getattr(module, "dilation", 1))
        )
        if kernel > 1:
            alive.append(given)
            radii[id(given)] = max(radii[id(given)], (kernel - 1) / 2 * dilation * _pixels(given))
        largest = max(largest, (given.numel() + output.numel()) * given.element_size() / _SIDE**2)

    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    hooks = [module.register_forward_hook(after) for module in network.modules() if isinstance(module, kinds)]
    try:
        small = maps(torch.zeros(1, 3, _SIDE, _SIDE, **like))
    finally:
        for hook in hooks:
            hook.remove()
    stride = round(_pixels(small))
    padded = (int(sum(radii.values())) // stride + 1) * stride
    alive.clear()
    noise = torch.randn(1, 3, _STRIPE, 2 * padded + 8 * stride, generator=torch.Generator().manual_seed(0)).to(**like)
    changed = noise.clone()
    changed[..., padded + 4 * stride :] = torch.flip(noise, (0, 3))[..., padded + 4 * stride :] + 1
    before, after_change = maps(noise)[..., :4], maps(changed)[..., :4]
    difference = (before - after_change).abs().max() / before.abs().max().clamp(min=1e-12)
    return Reach(stride, padded, _COPIES * largest, bool(difference < _ROUNDING))


def _pixels(cells: Tensor) -> float:
    """Pixels of a cell, to a side; some networks have a cell more than fits."""
    count = min(cells.shape[-2:])
    return _SIDE / max(1, count if _SIDE % count == 0 else count - 1)


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


class Tiles:
    """A network that consists of convolutions, which is computed in tiles where the memory does not allow the whole picture.

    Args:
        network: in evaluation mode.
        maps: calls it.
        batch: pictures in a batch.
    """

    def __init__(
        self, network: nn.Module, maps: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c hs ws"]], batch: int = 1
    ) -> None:
        self.network, self.maps, self.batch = network, maps, batch

    @cached_property
    def reach(self) -> Reach:
        """What an output value depends on."""
        return reach(self.network, self.maps)

    def whole(self, pixels: float, limit: float) -> float:
        """About the bytes of a forward pass for a picture of this size; less exact where it is certainly within the limit."""
        rough = ROUGH * pixels * self.batch
        # the network is only looked at if the picture may not fit
        return rough if rough <= limit else self.reach.bytes_per_pixel * pixels * self.batch

    def of_tile(self, core: int) -> float:
        """About the bytes of a forward pass for a tile with this side, without the overlap."""
        return (core + 2 * self.reach.radius) ** 2 * self.batch * (self.reach.bytes_per_pixel + 12)

    def core(self, limit: float) -> int:
        """The side of tiles without their overlap, a multiple of the stride: the largest that the limit allows, in bytes."""
        side = (limit / (self.batch * (self.reach.bytes_per_pixel + 12))) ** 0.5 - 2 * self.reach.radius
        stride = self.reach.stride
        return max(int(min(side, _LARGEST_TILE)), _SMALLEST_TILE, stride) // stride * stride

    def within(self, limit: float, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """The output for a picture, in tiles if the whole would take more bytes than the limit."""
        height, width = image.shape[2:]
        if self.whole(height * width, limit) <= limit:
            return self.maps(image)

        def of_tile(rows: slice, columns: slice) -> Tensor:
            return self.maps(image[..., rows, columns])

        return tiled(of_tile, (height, width), self.reach, self.core(limit))
