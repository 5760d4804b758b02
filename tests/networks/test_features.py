"""Dense features of frozen networks: every architecture at sizes that are no multiples of its patch, against the model's own forward pass."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    RadioConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

from tests.parity import inputs
from tests.test_pretrained import STATE
from wsss import classifier, foundations
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings, load_features
from wsss.networks.features import ARCHITECTURES, CLIP, DenseFeatures, TransformerFeatures, _as_patches
from wsss.pretrained import load_clip
from wsss.weights import write_weights

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "dinov2": Dinov2Config(**SMALL, patch_size=7, image_size=35),
    "dinov2_with_registers": Dinov2WithRegistersConfig(**SMALL, patch_size=7, image_size=35, num_register_tokens=4),
    "dinov3_vit": DINOv3ViTConfig(**SMALL, patch_size=8, image_size=32, num_register_tokens=2),
    "radio": RadioConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=32, max_img_size=64
    ),
    "siglip_vision_model": SiglipVisionConfig(**SMALL, patch_size=8, image_size=32),
    "siglip2_vision_model": Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=16),
    "clip_vision_model": CLIPVisionConfig(**SMALL, patch_size=8, image_size=32),
}
IMAGE = inputs.image(45, 58)


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[kind].model(CONFIGS[kind]).eval()


def wrapped(kind: str, **options: int) -> DenseFeatures:
    return DenseFeatures(TransformerFeatures(model_of(kind), kind), **options)


def padded(image: np.ndarray, multiple: int) -> np.ndarray:
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_pictures_of_any_size_are_padded_with_zeros_and_no_token_is_lost(kind):
    features = wrapped(kind)
    grid, cell = features.grid(IMAGE), features.cell
    assert grid.shape == (*features.grid_hw(IMAGE.shape[:2]), 16)
    assert grid.shape[:2] == (-(-45 // cell), -(-58 // cell))
    np.testing.assert_array_equal(grid, features.grid(padded(IMAGE, cell)))
    assert np.isfinite(grid).all()


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind not in ("siglip2_vision_model", "radio")])
def test_features_are_the_models_own_patch_tokens(kind):
    model, features = model_of(kind), wrapped(kind)
    picture = padded(IMAGE, features.cell)
    mean, deviation = features.network.colours
    values = torch.from_numpy((picture / 255 - mean) / deviation).float().permute(2, 0, 1)[None]
    options = {"interpolate_pos_encoding": True} if "dino" not in kind else {}
    with torch.inference_mode():
        tokens = model(pixel_values=values, **options).last_hidden_state[0]
    rows, columns = features.grid_hw(IMAGE.shape[:2])
    # whatever comes before the patches: class token and registers
    expected = tokens[len(tokens) - rows * columns :].reshape(rows, columns, -1)
    assert len(tokens) - rows * columns == {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 3}.get(
        kind, 1 if "clip_" in kind else 0
    )
    np.testing.assert_allclose(features.grid(IMAGE), expected.numpy(), rtol=0, atol=5e-6)


def test_radio_normalises_pictures_itself():
    model, features = model_of("radio"), wrapped("radio")
    values = torch.from_numpy(padded(IMAGE, 8)).float().permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = model(pixel_values=values).features[0].reshape(6, 8, 16)
    np.testing.assert_allclose(features.grid(IMAGE), expected.numpy(), rtol=0, atol=2e-6)


def test_siglip2_gets_the_patches_that_its_own_processor_makes():
    picture = padded(IMAGE, 8)
    theirs = Siglip2ImageProcessor(patch_size=8, max_num_patches=48, do_resize=False)(picture, return_tensors="pt")
    values = torch.from_numpy((picture / 255 - 0.5) / 0.5).float().permute(2, 0, 1)[None]
    ours = _as_patches(values, 8)
    assert theirs["spatial_shapes"].tolist() == ours["spatial_shapes"].tolist() == [[6, 8]]
    np.testing.assert_allclose(ours["pixel_values"][0], theirs["pixel_values"][0], rtol=0, atol=1e-6)


def test_a_batch_gives_what_its_pictures_give_one_by_one():
    features = wrapped("siglip2_vision_model")
    pictures = torch.from_numpy(np.stack([inputs.image(40, 48, seed) for seed in range(3)])).permute(0, 3, 1, 2)
    (together,) = features(pictures)
    for index in range(3):
        (alone,) = features(pictures[index : index + 1])
        np.testing.assert_allclose(together[index], alone[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["radio", "dinov2", "clip_vision_model"])
def test_earlier_layers_are_the_outputs_of_their_blocks(kind):
    features = wrapped(kind, layers=3)
    outputs: list[torch.Tensor] = []
    blocks = [
        module
        for module in features.network.modules()
        if type(module).__name__ in ("RadioLayer", "Dinov2Layer", "CLIPEncoderLayer")
    ]
    for block in blocks:
        block.register_forward_hook(lambda *call: outputs.append(call[2]))
    maps = features(torch.from_numpy(IMAGE).permute(2, 0, 1)[None])
    assert len(maps) == len(blocks) == 3
    for index in (0, 1):
        tokens = outputs[index][0, features.network.prefix :]
        np.testing.assert_array_equal(maps[index][0].flatten(1).T, tokens)


def test_enlarged_pictures_have_smaller_cells_in_the_same_places():
    plain, enlarged = wrapped("dinov3_vit"), wrapped("dinov3_vit", enlarge=2)
    assert (plain.cell, enlarged.cell) == (8, 4)
    assert enlarged.grid(IMAGE).shape[:2] == enlarged.grid_hw((45, 58)) == (12, 15)


def test_weights_are_frozen_and_stay_in_evaluation_mode():
    features = wrapped("dinov2").train()
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not any(module.training for module in features.modules())


@pytest.mark.parametrize("options", [{"layers": 4}, {"layers": 0}, {"enlarge": 3}])
def test_layers_and_cells_that_a_network_does_not_have(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        wrapped("dinov3_vit", **options)


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders_saved_by_transformers(kind, tmp_path):
    model_of(kind).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]})
    )
    loaded = load_features(FeatureSettings(str(tmp_path)))
    assert loaded.source == str(tmp_path)
    colours = ARCHITECTURES[kind].colours if kind == "radio" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert loaded.features.network.colours == colours
    ours = DenseFeatures(TransformerFeatures(model_of(kind), kind, colours))
    np.testing.assert_array_equal(loaded.features.grid(IMAGE), ours.grid(IMAGE))
    same = foundations.rebuilt(loaded.identity, {}, tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(same.grid(IMAGE), ours.grid(IMAGE))


def test_half_precision_weights_are_used_in_single_precision(tmp_path):
    model_of("dinov2").half().save_pretrained(tmp_path)
    features = load_features(FeatureSettings(str(tmp_path))).features
    assert {parameter.dtype for parameter in features.parameters()} == {torch.float32}


def test_a_network_that_has_changed_is_refused(tmp_path):
    model_of("dinov2").save_pretrained(tmp_path)
    identity = load_features(FeatureSettings(str(tmp_path))).identity
    torch.manual_seed(1)
    ARCHITECTURES["dinov2"].model(CONFIGS["dinov2"]).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="Restore that network"):
        foundations.rebuilt(identity, {}, Path("bank.safetensors"))


def classifier_file(
    tmp_path: Path, backbone: str = "resnet10t", stride: int = 16
) -> tuple[Path, classifier.CAMNetwork]:
    torch.manual_seed(0)
    network = classifier.CAMNetwork(backbone, 2, stride).eval()
    metadata = {"kind": "cam", "backbone": backbone, "output_stride": stride, "classes": ["a", "b"]}
    write_weights(tmp_path / "weights.safetensors", network.state_dict(), {**metadata, "colours": "clip"})
    return tmp_path, network


def test_the_features_of_a_classifier_that_was_trained_here(tmp_path):
    folder, network = classifier_file(tmp_path)
    loaded = load_features(FeatureSettings(str(folder), layers=1, enlarge=1))
    mean, deviation = loaded.features.network.colours
    assert mean[0] == pytest.approx(0.48145466)
    values = torch.from_numpy((padded(IMAGE, 16) / 255 - mean) / deviation).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = network.feature_maps(values)[-1][0].permute(1, 2, 0)
    np.testing.assert_allclose(loaded.features.grid(IMAGE), expected.numpy(), rtol=0, atol=2e-6)
    again = foundations.rebuilt(loaded.identity, loaded.features.network.state_dict(), folder)
    np.testing.assert_array_equal(again.grid(IMAGE), loaded.features.grid(IMAGE))


def test_two_stages_of_a_classifier_side_by_side_by_default(tmp_path):
    folder, network = classifier_file(tmp_path)
    features = load_features(FeatureSettings(str(folder))).features
    stages = network.body.channels[-2:]
    assert (features.layers, features.enlarge, features.cell) == (2, 2, 8)
    grid = features.grid(IMAGE)
    assert grid.shape == (*features.grid_hw((45, 58)), sum(stages))
    # each stage has a mean norm of 1, so that neither outweighs the other
    norms = np.linalg.norm(grid[..., : stages[0]], axis=-1)
    assert norms.mean() == pytest.approx(1, abs=1e-4)


def test_a_folder_of_timm_with_its_own_normalisation(tmp_path):
    torch.manual_seed(0)
    name = "test_vit"
    model = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.2]}
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": settings}))
    features = load_features(FeatureSettings(str(tmp_path))).features
    values = (padded(IMAGE, 16) / 255 - settings["mean"]) / settings["std"]
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(values).float().permute(2, 0, 1)[None])[0, 1:]
    np.testing.assert_allclose(features.grid(IMAGE), tokens.reshape(3, 4, -1).numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_file_of_dinov2s_authors(registers, tmp_path):
    torch.manual_seed(0)
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    model = timm.create_model(name, pretrained=False, depth=12, dynamic_img_size=True).eval()
    state = {key: 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    theirs = {**state, "mask_token": torch.zeros(1, 384)}
    if registers:
        # the authors add a positional embedding to the class token
        theirs["register_tokens"] = theirs.pop("reg_token")
        of_class = torch.randn(1, 1, 384)
        theirs["cls_token"] = theirs["cls_token"] - of_class
        theirs["pos_embed"] = torch.cat([of_class, theirs["pos_embed"]], 1)
    torch.save(theirs, tmp_path / "dinov2_pretrain.pth")
    features = load_features(FeatureSettings(str(tmp_path / "dinov2_pretrain.pth"))).features
    mean, deviation = ARCHITECTURES["dinov2"].colours
    values = torch.from_numpy((padded(IMAGE, 14) / 255 - mean) / deviation).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        tokens = model.forward_features(values)[0, 1 + registers :].reshape(4, 5, 384)
    np.testing.assert_allclose(features.grid(IMAGE), tokens.numpy(), rtol=0, atol=1e-4)


def test_openais_file(tmp_path):
    torch.save(STATE, tmp_path / "ViT-tiny.pth")
    features = load_features(FeatureSettings(str(tmp_path / "ViT-tiny.pth"))).features
    assert features.cell == 4
    clip = load_clip(str(tmp_path / "ViT-tiny.pth"))
    values = torch.from_numpy((padded(IMAGE, 4) / 255 - CLIP[0]) / CLIP[1]).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        tokens = clip.model.vision_model(values, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
    np.testing.assert_allclose(features.grid(IMAGE), tokens.reshape(12, 15, -1).numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"backbone.weight": torch.zeros(3)}, "other names than those of DINOv2"),
        (
            dict.fromkeys(
                ["cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "blocks.0.ls1.gamma"],
                torch.zeros(1, 1, 5),
            ),
            "a DINOv2 of width 5",
        ),
    ],
)
def test_files_of_other_networks(state, message, tmp_path):
    torch.save(state, tmp_path / "some.pth")
    with pytest.raises(BadInput, match=message):
        load_features(FeatureSettings(str(tmp_path / "some.pth")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "bert"}, "a model of type bert"),
        ({}, "a model of type None"),
        ([], "a model of type None"),
        ({"architecture": "no_such_model"}, "no model.safetensors|no_such_model|no such file"),
        ({"model_type": "dinov2", "hidden_size": "x"}, "cannot be read|save it again"),
    ],
)
def test_folders_that_cannot_be_used(content, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        load_features(FeatureSettings(str(tmp_path)))


@pytest.mark.parametrize("source", ["classifier", "no/such/folder", "resnet_of_nobody", "./nothing.safetensors"])
def test_sources_that_do_not_exist(source):
    with pytest.raises(BadInput, match="found"):
        load_features(FeatureSettings(source))


def test_settings_must_be_positive():
    with pytest.raises(BadInput, match="layers"):
        dataclasses.replace(FeatureSettings(), layers=0)
