"""Coarse scores at the size of a picture, some rows at a time: a large picture with many labels never has all of its scores in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.arrays import Float
from wsss.precision import at_least_single


class Step(NamedTuple):
    """A bilinear resizing.

    Attributes:
        size_hw: the height and width of the result.
        align_corners: see `torch.nn.functional.interpolate`.
        kept: the height and width of the top left part of the result that is kept; None: all of it.
    """

    size_hw: tuple[int, int]
    align_corners: bool = False
    kept: tuple[int, int] | None = None


def enlarge(
    coarse: Float[Tensor, "b l hc wc"], steps: Sequence[Step], rows: slice | None = None
) -> Float[Tensor, "b l h w"]:
    """Some rows of scores that are resized in several steps; equal to those rows of the whole up to rounding.

    Args:
        coarse: the scores.
        steps: the resizings, in their order.
        rows: the rows of the last result, with a start and a stop; None: all.

    Example:
        >>> import torch
        >>> coarse = torch.rand(1, 2, 3, 4)
        >>> part = enlarge(coarse, [Step((30, 40))], slice(10, 20))
        >>> torch.allclose(part, enlarge(coarse, [Step((30, 40))])[:, :, 10:20])
        True
    """
    coarse = at_least_single(coarse)
    if rows is not None:
        return _some_rows(coarse, steps, rows)
    for step in steps:
        coarse = F.interpolate(coarse, step.size_hw, mode="bilinear", align_corners=step.align_corners)
        if step.kept is not None:
            coarse = coarse[..., : step.kept[0], : step.kept[1]]
    return coarse


def _some_rows(coarse: Tensor, steps: Sequence[Step], rows: slice) -> Tensor:
    if not steps:
        return coarse[..., rows, :]
    *before, step = steps
    count = (before[-1].kept or before[-1].size_hw)[0] if before else coarse.shape[-2]
    above, weight = _sources(count, step, rows)
    below = (above + 1).clamp(max=count - 1)
    first, last = int(above[0]), int(below[-1])
    part = _some_rows(coarse, before, slice(first, last + 1))
    wide = F.interpolate(part, (part.shape[-2], step.size_hw[1]), mode="bilinear", align_corners=step.align_corners)
    if step.kept is not None:
        wide = wide[..., : step.kept[1]]
    weight = weight[:, None].to(wide)
    upper, lower = (wide.index_select(-2, (at - first).to(wide.device)) for at in (above, below))
    return upper.mul_(1 - weight).add_(lower.mul_(weight))


def _sources(count: int, step: Step, rows: slice) -> tuple[Tensor, Tensor]:
    """For each of the rows, the upper one of the two source rows, of this number, and the weight of the lower one."""
    height, at = step.size_hw[0], torch.arange(rows.start, rows.stop, dtype=torch.float64)
    if step.align_corners:
        position = at * ((count - 1) / (height - 1) if height > 1 else 0)
    else:
        position = ((at + 0.5) * (count / height) - 0.5).clamp(min=0)
    above = position.floor().clamp(max=count - 1).long()
    return above, (position - above).clamp(0, 1)
