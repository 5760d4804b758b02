"""The feature similarity loss against its definition over all pairs; its gradient against autograd's; what it asks for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.errors import BadInput
from wsss.ops import feature_similarity
from wsss.ops.feature_similarity import cells_inside, feature_similarity_loss

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def slowly(maps, colours, mu=2.5, sigma=5.0, max_distance=math.inf, colour_norm=1):
    """Over all pairs, as the formula says."""
    n, _, h, w = maps.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).to(maps)
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    weight = torch.full_like(apart, 1 / (h * w))
    if sigma is not None:
        weight = torch.exp(-0.5 * (apart / sigma) ** 2) / (2 * math.pi * sigma**2)
    weight = weight * (apart <= max_distance)
    total = 0
    for p, x in zip(maps.flatten(2).mT, colours.flatten(2).mT, strict=True):
        far = (x[:, None] - x[None]).abs().pow(colour_norm).sum(2).pow(1 / colour_norm) / 3 ** (1 / colour_norm)
        far = far.clamp(0, 1)
        gate = torch.tanh(mu + torch.log((far + 1e-5) / (1 - far + 1e-5)))
        total = total - (weight * gate * (p[:, None] - p[None]).square().sum(2)).sum()
    return total / (n * h * w)


def random(shape, seed=0, kind=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(kind)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 17), st.integers(1, 13)),
    pictures=st.integers(1, 3),
    sigma=st.sampled_from([None, 0.4, 1.0, 5.0]),
    mu=st.sampled_from([0.0, 2.5]),
    max_distance=st.sampled_from([None, 1.0, 3.0]),
    norm=st.sampled_from([1, 2]),
    pairs=st.sampled_from([1, 100, 1 << 17]),
)
def test_value_and_gradient(size, pictures, sigma, mu, max_distance, norm, pairs):
    maps, colours = random((pictures, 3, *size)).requires_grad_(), random((pictures, 3, *size), 1)
    with pytest.MonkeyPatch.context() as patch:  # blocks of any size
        patch.setitem(feature_similarity._PAIRS, "cpu", pairs)
        ours = feature_similarity_loss(maps, colours, mu, sigma, max_distance=max_distance, colour_norm=norm)
    (gradient,) = torch.autograd.grad(3 * ours, maps)
    wanted = slowly(maps, colours, mu, sigma, math.inf if max_distance is None else max_distance, norm)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * wanted, maps)[0], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("pairs", [40, 1 << 17])
def test_cells_that_do_not_count(pairs, monkeypatch):
    monkeypatch.setitem(feature_similarity._PAIRS, "cpu", pairs)
    maps, colours = random((2, 3, 7, 6)).requires_grad_(), random((2, 3, 7, 6), 1)
    inside = torch.zeros(2, 7, 6, dtype=torch.bool)
    inside[0, 2:, 1:5], inside[1, :4] = True, True
    whole = feature_similarity_loss(maps, colours, sigma=2.0, inside=inside)
    parts = [
        feature_similarity_loss(maps[n : n + 1, :, rows, columns], colours[n : n + 1, :, rows, columns], sigma=2.0)
        for n, rows, columns in ((0, slice(2, 7), slice(1, 5)), (1, slice(0, 4), slice(0, 6)))
    ]
    torch.testing.assert_close(whole, sum(parts) / 2, rtol=1e-12, atol=0)
    for ours, wanted in zip(torch.autograd.grad(whole, maps), torch.autograd.grad(sum(parts) / 2, maps), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-15)
    nothing = feature_similarity_loss(maps, colours, inside=torch.zeros_like(inside))
    assert nothing.item() == 0


def test_what_a_crop_shows():
    image = torch.randn(2, 3, 8, 8)
    image[0, :, :4], image[1, :, :, 6:] = 0, 0
    inside = cells_inside(image, (4, 4))
    # the middles of the outer cells lie on the outer pixels, the corners aligned
    assert inside[0].any(1).tolist() == [False, False, True, True]
    assert inside[1].all(0).tolist() == [True, True, True, False]
    assert cells_inside(image[:, :, :, :6], (8, 6))[1].all()


def test_far_pairs_that_are_left_out_do_not_show():
    """A map of more than 5.6 widths of the neighbourhood, where float32 leaves pairs out."""
    maps, colours = random((1, 2, 40, 8)), random((1, 3, 40, 8), 1)
    ours, gradients = [], []
    for kind in (torch.float32, torch.float64):
        own = maps.to(kind).requires_grad_()
        ours.append(feature_similarity_loss(own, colours.to(kind), sigma=2.0))
        gradients.append(torch.autograd.grad(ours[-1], own)[0].double())
    torch.testing.assert_close(ours[0].double(), ours[1], rtol=2e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-6 * gradients[1].abs().max().item())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [-500.0, -50.0, 10.0, 45.0, 500.0])
@pytest.mark.parametrize("sigma", [0.1, 0.2, 5.0, 1000.0, None])
def test_file_checkss_and_neighbourhoods_at_their_limits(kind, mu, sigma):
    """Gates that are -1 or 1 everywhere; neighbourhoods in which a cell itself outweighs all others by 1e22."""
    maps, colours = random((2, 3, 9, 7)), random((2, 3, 9, 7), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(feature_similarity._PAIRS, "cpu", 100)
        ours = feature_similarity_loss(maps.to(kind), colours.to(kind), mu, sigma)
    torch.testing.assert_close(ours.double(), slowly(maps, colours, mu, sigma), rtol=2e-6, atol=0)


def test_mixed_precision_leaves_it_alone():
    maps, colours = (
        random((1, 3, 20, 20), kind=torch.float32).requires_grad_(),
        random((1, 3, 20, 20), 1, torch.float32),
    )
    wanted = feature_similarity_loss(maps, colours)
    with torch.autocast("cpu", torch.bfloat16):
        ours = feature_similarity_loss(maps, colours)
    assert torch.equal(ours, wanted)
    assert torch.equal(*(torch.autograd.grad(loss, maps)[0] for loss in (ours, wanted)))


def test_what_it_asks_for():
    colours = torch.zeros(1, 3, 4, 4)
    colours[..., 2:] = 1
    split, flat = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), 0.5)
    split[:, 0, :, :2] = split[:, 1, :, 2:] = 1
    assert feature_similarity_loss(flat, colours) == 0
    # the edge of the maps along the edge of the colours pays, across it costs
    assert feature_similarity_loss(split, colours) < 0 < feature_similarity_loss(split.mT.contiguous(), colours)


def test_half_precision_and_constant_maps():
    maps, colours = random((2, 3, 6, 5), kind=torch.float32), random((2, 3, 6, 5), 1, torch.float32)
    half = maps.bfloat16().requires_grad_()
    loss = feature_similarity_loss(half, colours)
    loss.backward()
    assert loss.dtype == half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.float(), feature_similarity_loss(half.detach().float(), colours), rtol=1e-2, atol=0)
    constant = torch.full((1, 3, 6, 5), 0.3, requires_grad=True)
    feature_similarity_loss(constant, colours[:1]).backward()
    assert constant.grad.abs().max() < 1e-8


def test_arguments_that_do_not_fit():
    with pytest.raises(BadInput, match="found 1 of 4x4 cells; expected 2 of 4x4"):
        feature_similarity_loss(torch.rand(2, 2, 4, 4), torch.rand(1, 3, 4, 4))
    with pytest.raises(BadInput, match="found 1 of 8x8 cells; expected 1 of 4x4"):
        feature_similarity_loss(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 8, 8))
    with pytest.raises(BadInput, match="sigma of the feature similarity loss: found 0"):
        feature_similarity_loss(torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4), sigma=0.0)
