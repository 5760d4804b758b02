"""timm models as backbones: pictures of any size, published weights, and what is refused by name."""

import math

import numpy as np
import pytest
import timm
import torch

from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.errors import BadInput
from wsss.loading import load_into
from wsss.networks import timm_backbone
from wsss.networks.backbone import create_backbone

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("test_vit", 16),
        ("test_vit2", 16),
        ("test_resnet", 8),
        ("test_efficientnet", 16),
        ("test_convnext", 32),
        ("test_mambaout", 32),
    ],
)
@pytest.mark.parametrize("size", [(96, 128), (144, 96), (97, 131), (33, 250)])
def test_cells_cover_pictures_of_any_size(name, stride, size):
    torch.manual_seed(0)
    backbone = create_backbone(name, stride).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, *size))
    assert backbone.strides[-1] == stride
    for feature, channels, each in zip(features, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (2, channels, *(math.ceil(side / each) for side in size))
        assert feature.isfinite().all()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_small_patch14_dinov2"])
def test_networks_of_one_native_size_take_others(name):
    stride = 14 if "patch14" in name else 32
    with torch.device("meta"):
        backbone = create_backbone(name, stride).eval()
        deepest = backbone(torch.empty(1, 3, 97, 131))[-1]
    assert deepest.shape == (1, backbone.channels[-1], math.ceil(97 / stride), math.ceil(131 / stride))


def test_a_picture_is_padded_with_the_mean_colour_at_the_right_and_bottom():
    torch.manual_seed(0)
    backbone, image = create_backbone("test_vit", 16).eval(), torch.randn(1, 3, 40, 50)
    mean = (-backbone.shift / backbone.scale).expand(1, 3, 48, 64).clone()
    mean[..., :40, :50] = image
    torch.testing.assert_close(backbone(image)[-1], backbone(mean)[-1])


def test_features_of_a_transformer_are_those_of_timm_after_its_last_norm():
    torch.manual_seed(0)
    whole = timm.create_model("test_vit").eval()
    backbone = create_backbone("test_vit", 16).eval()
    load_into(backbone, backbone.named(whole.state_dict()), "timm")
    side = whole.pretrained_cfg["input_size"][-1]
    image = torch.randn(2, 3, side, side)
    tokens = whole.forward_features(image * backbone.scale + backbone.shift)[:, whole.num_prefix_tokens :]
    expected = tokens.mT.reshape(2, -1, side // 16, side // 16)
    torch.testing.assert_close(backbone(image)[-1], expected)


def test_channels_last_where_a_picture_has_as_many_cells_as_channels():
    torch.manual_seed(0)
    backbone = create_backbone("test_mambaout", 32).eval()
    stride, channels = backbone.strides[0], backbone.channels[0]
    image = torch.randn(1, 3, stride * channels, 64)
    first = backbone(image)[0]
    assert first.shape == (1, channels, channels, 64 // stride)
    # so are those of the picture and of a part of it, far from its border
    torch.testing.assert_close(first[:, :, :4], backbone(image[:, :, : 16 * stride])[0][:, :, :4])


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "test_byobnet"]
)
def test_weights_of_the_whole_model_load_and_keep_their_values(name):
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    backbone = create_backbone(name, 16 if "vit" in name else 32)
    named = backbone.named(state)
    assert not load_into(backbone, named, "timm").missing
    # each published tensor has one place, under a name that ends in its own, and goes there unchanged
    for own, value in named.items():
        (published,) = [key for key, other in state.items() if other is value]
        assert own.replace("_", ".").endswith(published.replace("_", "."))
    assert backbone.named(backbone.state_dict()).keys() == backbone.state_dict().keys()


def test_tensors_of_another_network_are_not_dropped_in_silence():
    state = timm.create_model("test_vit").state_dict()
    state["blocks.6.attn.qkv.weight"] = torch.zeros(3)
    backbone = create_backbone("test_vit", 16)
    with pytest.raises(BadInput, match=r"1 unknown to the network \(body\.blocks\.6\.attn\.qkv\.weight\)"):
        load_into(backbone, backbone.named(state), "vit.pth")


@pytest.mark.parametrize(
    ("name", "stride", "found", "do"),
    [
        (
            "mixer_s32_224",
            32,
            "does not accept a picture of .* match model",
            "Choose one that does, for example resnet50",
        ),
        ("pit_ti_224", 32, "does not accept a picture", "Choose one that does"),
        ("hiera_tiny_224", 16, "does not accept a picture", "Choose one that does"),
        ("test_vit", 32, "stride 16, which cannot be changed to 32", "Set the output stride to 16"),
        ("resnet10t", 12, "stride 32, which cannot be changed to 12", "Set the output stride to 32"),
        ("resnett10", 16, "no network with this name", r"Did you mean resnet10t or"),
        ("vit_tiny_patch16", 16, "no network with this name", r"Did you mean vit_tiny_patch16_"),
        ("hf-hub:timm/resnet50", 16, "no network with this name", "."),
        ("", 16, "no network with this name", "."),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_by_name(name, stride, found, do):
    with pytest.raises(BadInput, match=f"backbone {name}: found .*{found}") as caught:
        create_backbone(name, stride)
    assert caught.match(do)


def test_building_draws_the_same_numbers_whether_or_not_the_model_was_tried_before():
    drawn = []
    timm_backbone._plan.cache_clear()
    for _ in range(2):
        torch.manual_seed(3)
        weight = next(iter(create_backbone("test_vit", 16).parameters()))
        drawn.append((weight.detach().clone(), torch.rand(2)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


def test_layers_that_a_feature_of_a_transformer_is_made_with():
    backbone = create_backbone("test_vit", 16)
    image = torch.randn(1, 3, 48, 64)
    for feature in range(len(backbone.channels)):
        backbone.zero_grad(set_to_none=True)
        backbone(image)[feature].square().sum().backward()
        used = {id(parameter) for parameter in backbone.parameters() if parameter.grad is not None}
        until = {id(parameter) for parameter in backbone.parameters_until(feature)}
        norm = {id(p) for p in backbone.body.model.norm.parameters()}
        assert used - norm == until - norm


def test_maps_at_several_scales_of_a_picture_that_is_not_square():
    torch.manual_seed(0)
    localizer = CAMLocalizer(CAMNetwork("test_vit", 3).eval(), MultiScale(scales=(1.0, 0.5, 1.5)))
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)
    cams = localizer.cams(localizer.prepare(image), (45, 70), np.array([True, False, True]))
    assert [array.shape for array in cams[1:]] == [(2, 45, 70), (2, 12, 18)]
    assert all(np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1 for array in cams[1:])
