"""3x3 convolutions in squares against direct ones."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss.networks import winograd
from wsss.networks.winograd import Winograd

CHANNELS = 128


@pytest.fixture
def squares(monkeypatch):
    """How often squares were computed."""
    counted = []
    compute = Winograd._in_squares
    monkeypatch.setattr(Winograd, "_in_squares", lambda self, values: counted.append(1) or compute(self, values))
    return counted


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    dilation=st.integers(1, 4),
    bias=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    at_once=st.sampled_from([1, 2**12, 2**16]),
)
def test_squares_compute_the_convolution(number, height, width, dilation, bias, layout, at_once):
    torch.manual_seed(0)
    direct = nn.Conv2d(CHANNELS, CHANNELS + 8, 3, padding=dilation, dilation=dilation, bias=bias).requires_grad_(False)
    other = Winograd.of(direct)
    values = torch.rand(number, CHANNELS, height, width).contiguous(memory_format=layout)
    before, winograd._AT_ONCE = winograd._AT_ONCE, at_once
    try:
        found = other._in_squares(values)
    finally:
        winograd._AT_ONCE = before
    exact = copy.deepcopy(direct).double()(values.double())
    assert found.shape == exact.shape
    # a direct convolution is 3e-6 off
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=3e-5)


def test_where_squares_do_not_pay_the_convolution_is_the_direct_one(squares):
    torch.manual_seed(0)
    direct = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    other = Winograd.of(copy.deepcopy(direct))
    large, tiny = torch.rand(1, CHANNELS, 16, 16), torch.rand(1, CHANNELS, 5, 5)
    with torch.inference_mode():
        assert torch.equal(other(tiny), direct(tiny))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(other(large), direct(large))
    with_gradients = other(large.requires_grad_())
    assert torch.equal(with_gradients, direct(large))
    with_gradients.sum().backward()
    assert other.weight.grad is not None
    assert not squares
    with torch.no_grad():
        other(large)
    assert len(squares) == 1


@pytest.mark.parametrize(
    "changed",
    [{"kernel_size": 5, "padding": 2}, {"stride": 2}, {"groups": 2}, {"padding": 0}, {"padding": "same"},
     {"padding_mode": "reflect"}, {"padding": (1, 2), "dilation": (1, 2)}, {"in_channels": 64}, {"dtype": torch.float64}],
)  # fmt: skip
def test_other_convolutions_stay(changed):
    plain = {"in_channels": CHANNELS, "out_channels": CHANNELS, "kernel_size": 3, "padding": 1}
    assert Winograd.suits(nn.Conv2d(**plain))
    assert not Winograd.suits(nn.Conv2d(**plain | changed))
