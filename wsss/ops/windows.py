"""Overlapping windows over a picture that is too large for a network."""

from collections.abc import Callable, Iterator

from torch import Tensor

from wsss.arrays import Float


def starts(side: int, window: int, step: int) -> list[int]:
    """Start positions of the windows along a side; the last window ends at the border of the picture."""
    n = max(side - window + step - 1, 0) // step + 1
    return [max(min(i * step, side - window), 0) for i in range(n)]


def windows(size_hw: tuple[int, int], window: int, step: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the windows, row by row; a side that is shorter than the window is covered by one window."""
    height, width = size_hw
    for top in starts(height, window, step):
        for left in starts(width, window, step):
            yield slice(top, min(top + window, height)), slice(left, min(left + window, width))


def average_over_windows(
    compute: Callable[[slice, slice], Float[Tensor, "*s hw ww"]], size_hw: tuple[int, int], window: int, step: int
) -> Float[Tensor, "*s h w"]:
    """Maps of a picture, computed in windows and averaged where windows overlap.

    Args:
        compute: the maps of one window, from its rows and columns.
        size_hw: height and width of the picture.
        window: side of the windows.
        step: distance between windows.
    """
    total: Tensor | None = None
    for rows, columns in windows(size_hw, window, step):
        maps = compute(rows, columns)
        if total is None:
            total, count = maps.new_zeros(*maps.shape[:-2], *size_hw), maps.new_zeros(size_hw)
        total[..., rows, columns] += maps
        count[rows, columns] += 1
    assert total is not None
    return total / count


def padding(side: int, multiple: int) -> tuple[int, int]:
    """Pixels before and after a side that make it a multiple; the smaller half comes first."""
    missing = -side % multiple
    return missing // 2, missing - missing // 2
