"""What a fully convolutional network sees and stores: the reach of an output value, and the memory of a forward pass."""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsss.arrays import Float
from wsss.networks.winograd import direct

_SIDE = 256
_STRIPE = 64
# above this share of the largest value, an output depends on pixels beyond the reach
_ROUNDING = 1e-4
# what operations take inside, such as another layout of their input, as a factor of the tensors that they return
_INSIDE = 1.4
# bytes of a forward pass for each pixel of its input, above those of common backbones
ROUGH = 600
# bytes of a transformer's token for each channel: activations of a block
OF_CHANNEL = 56
# the most pictures that are in work at the same time
_IN_WORK = 64
# sides of tiles without their overlap, in pixels
_LARGEST_TILE, _SMALLEST_TILE = 2048, 256


class Reach(NamedTuple):
    """What an output value of a network depends on.

    Attributes:
        stride: input pixels between two output values.
        radius: input pixels to each side that an output value depends on at most, a multiple of the stride.
        local: whether that is all; not so for networks with attention, squeeze-and-excitation or other means over the picture.
    """

    stride: int
    radius: int
    local: bool


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations of this thread return, for as long as they exist; `most` is the highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        for one in returned if isinstance(returned, tuple | list) else (returned,):
            if isinstance(one, Tensor):
                self._add(one.untyped_storage())
        return returned

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._storages:  # a view, or a result in place
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._storages[address]

        self._storages[address] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@torch.no_grad()
def bytes_per_pixel(network: nn.Module, call: Callable[[Float[Tensor, "1 3 h w"]], object]) -> float:
    """About the memory of a forward pass of a convolutional network for each pixel of its input, tried out on a small picture.

    Args:
        network: in evaluation mode.
        call: calls it.
    """
    some = next(network.parameters())
    small = torch.zeros(1, 3, _SIDE, _SIDE, device=some.device, dtype=some.dtype)
    # squares of convolutions take the same memory for pictures of any size, some tens of MB
    with direct(), _Alive() as alive:
        call(small)
    return _INSIDE * alive.most / _SIDE**2


@torch.inference_mode()
def reach(network: nn.Module, maps: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b c hs ws"]]) -> Reach:
    """The reach of the output of `maps`, which calls the network, in evaluation mode.

    The radius is the sum over all convolutions and poolings, of which those with the same input count once: it may be too large for networks with
    parallel branches of several layers. Whether it is enough is tried out on a stripe of noise, whose far half is changed.
    """
    some = next(network.parameters())
    like: Any = {"device": some.device, "dtype": some.dtype}
    radii: defaultdict[int, float] = defaultdict(float)
    alive = []  # so that no other tensor gets the same id
    here = threading.get_ident()

    def after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
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
    return Reach(stride, padded, bool(difference < _ROUNDING))


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


class Passes:
    """What forward passes of a network that consists mostly of convolutions take.

    Args:
        network: in evaluation mode.
        maps: calls it.
        batch: pictures in a batch.
    """

    def __init__(self, network: nn.Module, maps: Callable[[Float[Tensor, "b 3 h w"]], Any], batch: int = 1) -> None:
        self.network, self.maps, self.batch = network, maps, batch

    @cached_property
    def bytes_per_pixel(self) -> float:
        """See `bytes_per_pixel`."""
        return bytes_per_pixel(self.network, self.maps)

    def whole(self, pixels: float, limit: float) -> float:
        """About the bytes of a forward pass for a picture of this size; less exact where many of them are certainly within the limit."""
        rough = ROUGH * pixels * self.batch
        # the network is only tried out if it matters
        return rough if _IN_WORK * rough <= limit else self.bytes_per_pixel * pixels * self.batch


class Tiles(Passes):
    """A network that consists of convolutions, which is computed in tiles where the memory does not allow the whole picture."""

    @cached_property
    def reach(self) -> Reach:
        """What an output value depends on."""
        return reach(self.network, self.maps)

    def of_tile(self, core: int) -> float:
        """About the bytes of a forward pass for a tile with this side, without the overlap."""
        return (core + 2 * self.reach.radius) ** 2 * self.batch * (self.bytes_per_pixel + 12)

    def core(self, limit: float) -> int:
        """The side of tiles without their overlap, a multiple of the stride: the largest that the limit allows, in bytes."""
        side = (limit / (self.batch * (self.bytes_per_pixel + 12))) ** 0.5 - 2 * self.reach.radius
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
