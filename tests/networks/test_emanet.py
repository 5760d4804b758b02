"""The EMA unit against its definition, the layout of the trunks, initial weights, what is trained."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsss.errors import BadInput
from wsss.loading import load_backbone
from wsss.networks.backbone import create_backbone
from wsss.networks.emanet import EMANet, EMANetLayers, EMAUnit, Trunk

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SMALL = EMANetLayers("test_resnet", 8, channels=16, bases=4)


def estimated(x: np.ndarray, unit: EMAUnit) -> tuple[np.ndarray, np.ndarray]:
    """What the bases say of one picture's cells, cell by cell, and the bases."""
    weight, bias = unit.conv1.weight.detach().numpy()[:, :, 0, 0], unit.conv1.bias.detach().numpy()
    y = np.stack([weight @ cell + bias for cell in x.reshape(len(x), -1).T])
    mu, z = unit.mu.numpy()[0], None
    for _ in range(unit.stages):
        z = np.exp(y @ mu)
        z /= z.sum(1, keepdims=True)
        shares = z / (1e-6 + z.sum(0))
        mu = np.stack([(shares[:, k, None] * y).sum(0) for k in range(mu.shape[1])], 1)
        mu = mu / (1e-6 + np.sqrt((mu**2).sum(0)))
    return (mu @ z.T).reshape(x.shape), mu


@pytest.mark.parametrize("stages", [1, 3])
def test_unit_is_its_definition(stages):
    torch.manual_seed(0)
    unit = EMAUnit(6, 4, stages).eval().double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    out, mu = unit(x)
    for i in range(2):
        said, bases = estimated(x[i].numpy(), unit)
        np.testing.assert_allclose(mu[i], bases, atol=1e-12)
        own = unit.conv2(torch.from_numpy(np.maximum(said, 0))[None])[0] + x[i]
        np.testing.assert_allclose(out[i].detach(), own.relu().detach(), atol=1e-12)


def test_bases_move_in_training_alone_by_the_mean_over_all_processes():
    torch.manual_seed(0)
    unit = EMAUnit(6, 4, over_processes=lambda mu: mu + 1)
    before = unit.mu.clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(1, 4), atol=1e-5)
    _, mu = unit.train()(torch.randn(2, 6, 3, 5))
    torch.testing.assert_close(unit.mu, 0.9 * before + 0.1 * (mu.mean(0, keepdim=True) + 1))
    moved = unit.mu.clone()
    unit.eval()(torch.randn(2, 6, 3, 5))
    assert torch.equal(unit.mu, moved)


def test_estimation_stays_in_float32():
    torch.manual_seed(0)
    unit, x = EMAUnit(16, 8).eval(), 30 * torch.rand(1, 16, 6, 6)
    _, exact = unit(x)
    with torch.autocast("cpu", torch.bfloat16):
        _, mu = unit(x)
    assert torch.equal(mu, exact)


@pytest.mark.parametrize(("stride", "third", "fourth"), [(8, (1, 2, 2), (2, 8, 16)), (16, (1, 1, 1), (1, 4, 8))])
def test_dilations(stride, third, fourth):
    with torch.device("meta"):
        trunk = Trunk("resnet50s", stride)
        features = trunk(torch.empty(1, 3, 65, 97))
    layers = list(trunk.children())
    assert tuple(block.conv2.dilation[0] for block in layers[6])[:3] == third
    assert tuple(block.conv2.dilation[0] for block in layers[7]) == fourth
    assert all(block.conv2.padding == block.conv2.dilation for layer in layers[4:] for block in layer)
    assert [feature.shape[1] for feature in features] == trunk.channels
    assert features[-1].shape[2:] == (-(-65 // stride), -(-97 // stride))


@pytest.fixture(scope="module")
def encoding(tmp_path_factory):
    """A file like PyTorch-Encoding's resnet50-ebb6acbb.pth."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet50-ebb6acbb.pth"
    torch.save(timm.create_model("resnet50s").state_dict(), path)
    return path


def test_initial_weights_of_the_trunk(encoding, tmp_path):
    trunk, state = Trunk("resnet50s"), torch.load(encoding, weights_only=True)
    report = load_backbone(trunk, "resnet50s", str(encoding))
    assert report.ignored == ("fc.weight", "fc.bias")
    assert not report.missing
    assert torch.equal(trunk.state_dict()["0.3.weight"], state["conv1.3.weight"])
    assert torch.equal(trunk.state_dict()["7.2.conv3.weight"], state["layer4.2.conv3.weight"])
    # so is a classifier's backbone of that name, and a whole EMANet
    classifier = {
        f"backbone.{name}": value + 1 for name, value in create_backbone("resnet50s", 16).state_dict().items()
    }
    torch.save({**classifier, "classifier.weight": torch.zeros(2)}, tmp_path / "classifier.pth")
    load_backbone(trunk, "resnet50s", str(tmp_path / "classifier.pth"))
    assert torch.equal(trunk.state_dict()["0.3.weight"], classifier["backbone.body.conv1.3.weight"])
    whole = EMANet(3, EMANetLayers("resnet50s"))
    torch.save({"net": whole.state_dict(), "step": 1}, tmp_path / "latest.pth")
    load_backbone(trunk, "resnet50s", str(tmp_path / "latest.pth"))
    assert torch.equal(trunk.state_dict()["0.3.weight"], whole.state_dict()["extractor.0.3.weight"])


def test_other_trunks_are_refused(encoding, tmp_path):
    with pytest.raises(BadInput, match="weights of another network"):
        load_backbone(Trunk("resnet101s"), "resnet101s", str(encoding))
    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "resnet50-0676ba61.pth")
    with pytest.raises(BadInput, match="unknown to the network"):
        load_backbone(Trunk("resnet50s"), "resnet50s", str(tmp_path / "resnet50-0676ba61.pth"))


def test_new_weights_groups_and_gradients():
    torch.manual_seed(0)
    unit = EMAUnit(512)
    for conv in (unit.conv1, unit.conv2[0]):
        assert conv.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    network = EMANet(3, SMALL).train()
    groups = network.param_groups(1.0, 0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1, 0.01), (1, 0), (2, 0)]
    network(torch.randn(2, 3, 33, 33)).square().mean().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {"emau.conv1.weight", "emau.conv1.bias"}
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {3e-4}


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (17, 33)])
def test_any_size(size):
    torch.manual_seed(0)
    assert EMANet(3, SMALL).eval()(torch.randn(2, 3, *size)).shape == (2, 3, *size)
