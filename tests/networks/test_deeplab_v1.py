"""What DeepLab v1 trains and freezes, and its initial weights."""

import pytest
import torch
from torch import nn

from wsss.networks.deeplab_v1 import DeepLabV1, DeepLabV1Layers

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NARROW = "resnet38-narrow32"


def made(batch_norm: str) -> DeepLabV1:
    torch.manual_seed(0)
    return DeepLabV1(3, DeepLabV1Layers(NARROW, dilation=2, batch_norm=batch_norm))


def step(network: DeepLabV1) -> set[str]:
    """What a training step changes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.param_groups(0.1), lr=0.1)
    network.train()(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_live_batch_norm_keeps_its_scales():
    network = made("live")
    changed, state = step(network), network.state_dict()
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    scales = {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    assert changed == state.keys() - scales


def test_frozen_batch_norm_and_first_layers():
    network = made("frozen")
    changed = step(network)
    assert not any("running" in name for name in changed if name.startswith("backbone."))
    assert {"bn_fov.running_mean", "bn_fov2.running_var"} <= changed
    assert not any(name.startswith(("backbone.conv1a", "backbone.b2")) for name in changed)
    assert "backbone.b3.conv_branch2a.weight" in changed
    assert network.training
    assert not network.backbone.bn7.training
    assert network.bn_fov.training


def test_new_weights():
    network = made("live")
    assert network.conv_fov.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert network.cls_conv.weight.std().item() == pytest.approx((2 / 3) ** 0.5, rel=0.05)
    assert network.conv_fov.padding == network.conv_fov.dilation == (2, 2)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {3e-4}


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 33)])
def test_any_size(size):
    assert made("live").eval()(torch.randn(2, 3, *size)).shape == (2, 3, *size)
