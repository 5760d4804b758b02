"""3x3 convolutions with a quarter of the multiplications, on CPUs.

Winograd's minimal filtering F(4x4, 3x3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): the input is cut into
overlapping squares of 6x6 and the output into squares of 4x4. Squares and filters are transformed, so that each of the 36 places of a square needs
one matrix product over the channels. Results differ from a direct convolution by rounding, about three times as much as the direct one's own.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# with fewer channels, the transforms cost more than the products save
_LEAST_CHANNELS = 128
# ragged edges are computed too: no more multiplications than this share of the direct convolution's, where 1/4 is the least
_LARGEST_SHARE = 0.4
# squares that each thread computes at once, times channels: what is in work stays in the caches
_AT_ONCE = 2**16
# channels whose filters are transformed at once
_AT_ONCE_TRANSFORMED = 32
# with many channels, more squares: one for every 12 channels at least, since each round reads all filters
_CHANNELS_A_SQUARE = 12

# the points are 0, 1, -1, 2, -2 and infinity
_INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_FILTER = (
    torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
)
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)
# of whole squares, row by row: (36, 36), (36, 9) and (16, 36)
_INPUT_SQUARE = torch.kron(_INPUT, _INPUT).float()
_FILTER_SQUARE = torch.kron(_FILTER, _FILTER)
_OUTPUT_SQUARE = torch.kron(_OUTPUT, _OUTPUT).float()

_direct: contextvars.ContextVar[bool] = contextvars.ContextVar("direct", default=False)


@contextlib.contextmanager
def direct() -> Iterator[None]:
    """Inside this block all convolutions are direct ones, which take no memory besides their outputs."""
    token = _direct.set(True)
    try:
        yield
    finally:
        _direct.reset(token)


class Winograd(nn.Conv2d):
    """A convolution whose results are computed as described above where that pays; elsewhere it is as any other.

    It pays for float32 on CPUs, without gradients, if the output is not so small that squares of 4x4 pixels stick out of it.
    """

    filters: Tensor | None = None
    """(36, C_in, C_out), transformed; made when they are used first."""

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether the convolution can be computed this way, and has enough channels for it to pay."""
        return (
            conv.kernel_size == (3, 3)
            and conv.stride == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and conv.dilation[0] == conv.dilation[1]
            and conv.padding == conv.dilation
            and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS
            and conv.weight.dtype == torch.float32
        )

    @staticmethod
    def of(conv: nn.Conv2d) -> "Winograd":
        """The same convolution, with the same weights, which should not be changed any more.

        Args:
            conv: one that `suits`.
        """
        made = Winograd.__new__(Winograd)
        made.__dict__.update(conv.__dict__)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W), channels-last where it is computed here."""
        if self._pays(input):
            return self._in_squares(input)
        return super().forward(input)

    def _pays(self, values: Tensor) -> bool:
        height, width = values.shape[-2:]
        rows, columns = self._squares(height, width)
        return (
            not _direct.get()
            and values.dim() == 4
            and values.device.type == "cpu"
            and values.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (values.requires_grad or self.weight.requires_grad))
            and 36 * rows * columns * self.dilation[0] ** 2 <= _LARGEST_SHARE * 9 * height * width
        )

    def _squares(self, height: int, width: int) -> tuple[int, int]:
        """Squares in a column and in a row; each has one for each offset of a dilated filter's grid."""
        step = 4 * self.dilation[0]
        return -(-height // step), -(-width // step)

    def _transformed(self) -> Tensor:
        made = self.weight.new_empty(36, self.in_channels, self.out_channels)
        places = self.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)  # (9, C_in, C_out)
        # in double precision, for some channels at a time
        for some, channels in zip(
            made.split(_AT_ONCE_TRANSFORMED, 1), places.split(_AT_ONCE_TRANSFORMED, 1), strict=True
        ):
            some.copy_((_FILTER_SQUARE @ channels.double().flatten(1)).view_as(some))
        return made

    def _in_squares(self, values: Tensor) -> Tensor:
        if self.filters is None:
            self.filters = self._transformed()
        number, channels, height, width = values.shape
        apart = self.dilation[0]
        step = 4 * apart
        rows, columns = self._squares(height, width)
        made = values.new_empty(number, rows * step, columns * step, self.out_channels)
        across = number * apart * apart * columns
        both = channels + self.out_channels
        at_once = max(_AT_ONCE * torch.get_num_threads() // both, both // _CHANNELS_A_SQUARE) // across
        at_once = min(rows, max(1, at_once))
        # memory that is used again: new pages cost as much as the sums
        taken, given = at_once * across * channels, at_once * across * self.out_channels
        buffers = [values.new_empty(count) for count in (36 * taken, 36 * taken, 36 * given, 16 * given)]
        last = values.permute(0, 2, 3, 1)
        for first in range(0, rows, at_once):
            some = min(at_once, rows - first)
            taken, given = some * across * channels, some * across * self.out_channels
            squares, transformed, products, outputs = (
                buffer[: places * each].view(places, each)
                for buffer, places, each in zip(buffers, (36, 36, 36, 16), (taken, taken, given, given), strict=True)
            )
            # the pixels of these squares, with a border as wide as the dilation, and zeros outside of the picture
            top, bottom = first * step - apart, (first + some) * step + apart
            inside = last[:, max(top, 0) : min(bottom, height)]
            border = (0, 0, apart, columns * step + apart - width, max(-top, 0), max(bottom - height, 0))
            padded = F.pad(inside, border)
            one, down, right, deep = padded.stride()
            size = 6, 6, number, some, apart, columns, apart, channels
            squares.view(size).copy_(
                padded.as_strided(
                    size, (apart * down, apart * right, one, step * down, down, step * right, right, deep)
                )
            )
            torch.mm(_INPUT_SQUARE, squares, out=transformed)
            torch.bmm(transformed.view(36, -1, channels), self.filters, out=products.view(36, -1, self.out_channels))
            torch.mm(_OUTPUT_SQUARE, products, out=outputs)
            # (4, 4, N, rows, offsets, columns, offsets, C) -> N, rows, 4, offsets, columns, 4, offsets, C
            place = made[:, first * step : (first + some) * step].unflatten(1, (some, 4, apart))
            place.unflatten(4, (columns, 4, apart)).copy_(
                outputs.view(4, 4, number, some, apart, columns, apart, -1).permute(2, 3, 0, 4, 5, 1, 6, 7)
            )
        inner = made[:, :height, :width]
        return (inner.contiguous() if self.bias is None else inner + self.bias).permute(0, 3, 1, 2)
