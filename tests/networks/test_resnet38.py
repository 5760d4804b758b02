import math

import pytest
import torch
from torch import nn

from wsss.errors import BadInput
from wsss.loading import load_backbone
from wsss.networks import deeplab
from wsss.networks.backbone import create_backbone
from wsss.networks.resnet38 import ResNet38
from wsss.weights import write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NARROW = "resnet38-narrow16"


def narrow(seed: int = 0) -> ResNet38:
    torch.manual_seed(seed)
    return ResNet38(16)


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (31, 17), (64, 40), (50, 134)])
def test_channels_and_sizes_of_the_features(size):
    network = narrow().eval()
    features = network(torch.randn(2, 3, *size))
    assert [feature.shape[1] for feature in features] == network.channels == [8, 16, 32, 64, 256]
    for feature, stride in zip(features, network.strides, strict=True):
        assert feature.shape[2:] == tuple(math.ceil(side / stride) for side in size)
        assert feature.min() >= 0


def test_a_narrow_trunk_has_the_same_layers():
    with torch.device("meta"):
        wide, thin = ResNet38().state_dict(), ResNet38(16).state_dict()
    assert list(wide) == list(thin)
    for name, value in thin.items():
        divided = [side if side in (1, 3) else side // 16 for side in wide[name].shape]
        assert list(value.shape) == divided


@pytest.mark.parametrize("feature", range(5))
def test_what_a_feature_is_made_with(feature):
    network = narrow()
    network(torch.randn(2, 3, 24, 24))[feature].sum().backward()
    made_with = {id(parameter) for parameter in network.parameters() if parameter.grad is not None}
    assert made_with == {id(parameter) for parameter in network.parameters_until(feature)}


def test_dropout_takes_whole_channels_in_training_alone():
    network, seen = narrow(), []
    for name, rate in (("b6", 0.3), ("b7", 0.5)):
        for layer in (getattr(network, name).dropout_2b1, getattr(network, name).dropout_2b2):
            assert layer.p == rate
            layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    images = torch.randn(4, 3, 40, 40)
    network.eval()(images)
    assert all(torch.equal(before, after) for before, after in seen)
    seen.clear()
    assert network.train() is network
    network(images)
    for (before, after), rate in zip(seen, (0.3, 0.3, 0.5, 0.5), strict=True):
        alive = after.flatten(2).abs().amax(2) > 0
        expected = before / (1 - rate) * alive[..., None, None]
        torch.testing.assert_close(after, expected)
        assert alive.float().mean().item() == pytest.approx(1 - rate, abs=0.2)
    assert network.eval() is network


def test_as_a_backbone():
    with torch.device("meta"):
        assert isinstance(create_backbone("resnet38", 8), ResNet38)
        assert create_backbone("resnet38", 8).channels == [128, 256, 512, 1024, 4096]
        assert create_backbone("resnet38-narrow4", 8).channels[-1] == 1024


@pytest.mark.parametrize(
    ("name", "stride", "found"),
    [
        ("resnet38", 16, "output stride of resnet38: found 16"),
        ("resnet50", 4, "output stride of resnet50: found 4; expected 8, 16 or 32"),
        ("resnet10t", 4, "backbone resnet10t: found a deepest feature at stride 32, which cannot be changed to 4"),
        ("resnet38-narrow3", 8, "a width divided by 3"),
        ("resnet38-narrow0", 8, "a width divided by 0"),
        ("resnet38-narrow128", 8, "a width divided by 128"),
    ],
)
def test_what_it_cannot_be(name, stride, found):
    with pytest.raises(BadInput, match=found):
        create_backbone(name, stride)


def test_a_segmenter_on_it_may_have_live_batch_norms():
    settings = deeplab.DeepLabLayers(NARROW, atrous_rates=(2,), pyramid_scales=(), batch_norm="live")
    network = deeplab.create_deeplab(4, settings).train()
    norm = network.base.backbone.b4.bn_branch2a
    before = norm.running_mean.clone()
    network(torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    assert not torch.equal(norm.running_mean, before)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_weights_of_the_trunk_or_of_a_network_on_it(tmp_path, prefix, kind):
    source, target, path = narrow(1), narrow(2), tmp_path / f"aff.{kind}"
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items() if "num_batches" not in name}
    content = state | {name: torch.zeros(2) for name in ("fc8.weight", "f8_3.weight", "f8_5.weight", "f9.weight")}
    if kind == "pth":
        torch.save(content, path)
    else:
        write_weights(path, content, {})
    report = load_backbone(target, NARROW, str(path))
    assert len(report.loaded) == len(state) == 191
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "aff.pth"
    state = narrow(1).state_dict()
    del state["b4_3.conv_branch2a.weight"]
    torch.save(state, path)
    with pytest.raises(BadInput, match=r"1 missing \(b4_3\.conv_branch2a\.weight\)"):
        load_backbone(narrow(), NARROW, str(path))
    torch.save(nn.Conv2d(3, 4, 1).state_dict(), path)
    with pytest.raises(BadInput, match="0 of 228 tensors match"):
        load_backbone(narrow(), NARROW, str(path))


def test_weights_of_imagenet_come_as_a_file_only():
    with pytest.raises(BadInput, match=r"rna-a1_cls1000_ep-0001\.params .*train from scratch with `none`"):
        load_backbone(narrow(), NARROW, "imagenet")
