"""The pixel correlation module against its definition, in blocks; SEAM's layers on any backbone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.errors import BadInput
from wsss.networks.resnet38 import ResNet38
from wsss.networks.seam import SEAMNetwork, correlated, resized

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slowly(maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2)
    g = flat / (flat.norm(dim=1, keepdim=True) + 1e-5)
    a = (g.mT @ g).relu()
    return (maps.flatten(2) @ (a / (a.sum(1, keepdim=True) + 1e-5))).view_as(maps)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
    affinities=st.sampled_from([1, 50, 1 << 20]),
)
def test_correlations_in_blocks(shape, affinities):
    n, channels, depth, height, width = shape
    maps, features = (random(n, c, height, width, seed=i).requires_grad_() for i, c in enumerate((channels, depth)))
    weights = random(n, channels, height, width, seed=2)
    ours = correlated(maps, features, affinities=affinities)
    wanted = slowly(maps, features)
    torch.testing.assert_close(ours, wanted)
    gradients = [torch.autograd.grad((out * weights).sum(), (maps, features)) for out in (ours, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_correlations_of_maps_without_gradient():
    maps, features = random(2, 3, 4, 5), random(2, 6, 4, 5, seed=1).requires_grad_()
    correlated(maps, features).sum().backward()
    other = features.detach().clone().requires_grad_()
    slowly(maps, other).sum().backward()
    torch.testing.assert_close(features.grad, other.grad)


def test_like_cells_share_their_maps():
    maps, features = random(1, 2, 1, 4), torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    features[0, 0, 0, :2] = features[0, 1, 0, 2:] = 1
    revised = correlated(maps, features)
    pairs = maps.view(1, 2, 2, 2).mean(3, keepdim=True).expand(-1, -1, -1, 2).reshape(1, 2, 1, 4)
    torch.testing.assert_close(revised, pairs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "stride", "cells"),
    [
        ("resnet38-narrow16", 8, (5, 7)),
        ("test_resnet", 8, (5, 7)),
        ("resnet18", 16, (3, 4)),
        ("test_convnext", 32, (2, 2)),
    ],
)
def test_any_backbone(backbone, stride, cells):
    network = SEAMNetwork(3, backbone, stride).eval()
    taken = network(torch.randn(2, 3, 40, 52))
    assert taken.logits.shape == (2, 4, *cells)
    assert taken.features.shape == (2, 192, *cells)
    (taken.logits.sum() + correlated(*taken).sum() + taken.features.sum()).backward()
    heads = ("fc8", "f8_3", "f8_4", "f9")
    assert all(network.get_submodule(name).weight.grad is not None for name in heads)


def test_correlations_teach_their_own_layers_alone():
    network = SEAMNetwork(3, "test_resnet").eval()
    network(torch.randn(1, 3, 32, 32)).features.sum().backward()
    learned = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learned == {"f8_3.weight", "f8_4.weight", "f9.weight"}


def test_initial_weights():
    torch.manual_seed(0)
    network = SEAMNetwork(20, "resnet38-narrow4")
    assert isinstance(network.body, ResNet38)
    for layer, deviation in (
        (network.f8_3, (2 / 128) ** 0.5),
        (network.f8_4, (2 / 256) ** 0.5),
        (network.fc8, (2 / (1024 + 21)) ** 0.5),
        (network.f9, 4 * (2 / (195 + 192)) ** 0.5),
    ):
        assert abs(layer.weight.std().item() / deviation - 1) < 0.05
        assert layer.bias is None


def test_backbones_that_cannot_be():
    with pytest.raises(BadInput, match="backbone no_such_thing"):
        SEAMNetwork(2, "no_such_thing")
    with pytest.raises(BadInput, match="output stride of resnet38: found 16"):
        SEAMNetwork(2, "resnet38", 16)


def test_resizing_puts_corners_on_corners():
    maps = random(1, 2, 3, 4)
    assert resized(maps, (3, 4)) is maps
    larger = resized(maps, (5, 7))
    torch.testing.assert_close(larger[..., ::4, ::6], maps[..., ::2, ::3])
