"""Overlapping windows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsss.ops.windows import average_over_windows, padding, windows


def test_windows_cover_the_picture_once_or_are_averaged():
    view = torch.arange(2 * 45 * 70.0).view(1, 2, 45, 70)
    places = []

    def compute(rows: slice, columns: slice) -> torch.Tensor:
        places.append((rows.start, rows.stop, columns.start, columns.stop))
        return view[..., rows, columns]

    assert torch.equal(average_over_windows(compute, (45, 70), 32, 30), view)
    # steps of 30: rows 0 and 13, columns 0, 30 and 38
    assert places == [(top, top + 32, left, left + 32) for top in (0, 13) for left in (0, 30, 38)]
    assert torch.equal(average_over_windows(compute, (9, 9), 32, 30), view[..., :9, :9])


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 40), st.integers(1, 40))
def test_every_pixel_is_in_a_window(size_hw, window, step):
    counts = np.zeros(size_hw, int)
    for rows, columns in windows(size_hw, window, min(step, window)):
        counts[rows, columns] += 1
        assert rows.stop - rows.start == min(window, size_hw[0])
    assert counts.min() > 0


@pytest.mark.parametrize(("side", "before_after"), [(56, (0, 0)), (55, (0, 1)), (200, (12, 12)), (1, (27, 28))])
def test_padding(side, before_after):
    assert padding(side, 56) == before_after
