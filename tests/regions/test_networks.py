"""Proposers of transformers, with tiny networks of random weights that are made here."""

import json

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import tree
from wsss.errors import BadInput
from wsss.ops.region_shapes import without_small_parts
from wsss.regions.panoptic import EoMTSettings
from wsss.regions.sam import SAMSettings, cleaned, grid, stabilities
from wsss.stages.propose import propose

SIDE = 64
PROMPTS = {"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "iou_head_hidden_dim": 16,
}


def sam():
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "output_channels": 16,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
        "num_pos_feats": 8,
    }
    prompts = PROMPTS | {"patch_size": 8}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    processor = transformers.SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    return transformers.SamModel(config), processor


def sam2():
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 2, 4, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    }
    prompts = PROMPTS | {"patch_size": 16}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    return transformers.Sam2Model(config), transformers.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})


def eomt():
    config = transformers.EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=1,
        num_register_tokens=1,
        mlp_ratio=2,
    )
    processor = transformers.EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, do_pad=True)
    return transformers.EomtForUniversalSegmentation(config), processor


def mask2former():
    backbone = transformers.SwinConfig(
        image_size=SIDE, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6, num_labels=2,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessor(size={"height": SIDE, "width": SIDE}, size_divisor=32)
    return transformers.Mask2FormerForUniversalSegmentation(config), processor


@pytest.fixture(scope="module")
def models(tmp_path_factory, one_torch_thread):
    """A folder of each network."""
    folder = tmp_path_factory.mktemp("models")
    for make in (sam, sam2, eomt, mask2former):
        torch.manual_seed(0)
        model, processor = make()
        if hasattr(model, "mask_decoder"):
            with torch.no_grad():
                for network in model.mask_decoder.output_hypernetworks_mlps:
                    # logits of both signs, with steep edges
                    network.proj_out.bias.normal_(0, 400.0)
                sure = model.mask_decoder.iou_prediction_head.proj_out
                sure.bias.copy_(torch.linspace(0.5, 0.9, len(sure.bias)))
        model.save_pretrained(folder / make.__name__)
        processor.save_pretrained(folder / make.__name__)
    return folder


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)


def proposed(settings, picture):
    settings.check()
    proposer = settings.proposer()
    return proposer.regions(proposer.prepare(picture))


def check_equal_sets(masks, others):
    """Random networks are about equally sure of all masks, so their order depends on rounding, and so do pixels on edges."""
    assert len(masks) == len(others) > 2
    both = (masks[:, None] & others).sum(axis=(2, 3)) / (masks[:, None] | others).sum(axis=(2, 3))
    assert both.max(axis=0).min() > 0.98
    assert both.max(axis=1).min() > 0.98


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_masks_agree_with_the_pipeline_of_transformers(models, picture, name):
    from PIL import Image

    if name == "sam2":
        # the pipeline leaves a part of other pictures without points: it scales points as SAM does, and not as SAM 2 scales pictures
        picture = picture[:, :50]
    source = str(models / name)
    settings = SAMSettings(model=source, points=3, iou=0.5, stability=0.3, overlap=1.0)
    found = proposed(settings, picture)
    pipeline = transformers.pipeline("mask-generation", model=source, image_processor=source, device="cpu")
    published = pipeline(
        Image.fromarray(picture),
        points_per_batch=64,
        pred_iou_thresh=0.5,
        stability_score_thresh=0.3,
        crops_nms_thresh=1.0,
        points_per_crop=3,
        crops_n_layers=0,
    )
    expected = np.stack([np.asarray(mask) for mask in published["masks"]])
    kept = expected.any(axis=(1, 2))
    check_equal_sets(found.masks(), expected[kept])
    np.testing.assert_allclose(found.scores, np.asarray(published["scores"])[kept], atol=1e-5)


def test_of_masks_that_overlap_the_surest_is_kept(models, picture):
    settings = {"model": str(models / "sam"), "points": 2, "iou": 0.0, "stability": 0.0}
    (whole, few) = (proposed(SAMSettings(**settings, overlap=overlap), picture) for overlap in (1.0, 0.3))
    assert 0 < len(few) < len(whole)
    assert (np.diff(whole.scores) <= 0).all()
    assert few.scores[0] == whole.scores[0]


def test_masks_without_small_holes_and_islands(models, picture):
    settings = {"model": str(models / "sam"), "points": 3, "iou": 0.0, "stability": 0.0}
    (all_parts, large) = (proposed(SAMSettings(**settings, smallest=smallest), picture) for smallest in (0, 60))
    expected = [without_small_parts(mask, 60)[0].tobytes() for mask in all_parts.masks()]
    assert {mask.tobytes() for mask in large.masks()} <= set(expected)
    assert 0 < len(large) <= len(all_parts)
    assert (np.diff(large.scores) <= 0).all()


def test_of_masks_that_become_alike_one_without_small_parts_is_kept():
    masks = torch.zeros(4, 20, 20, dtype=torch.bool)
    masks[:3, 2:12, 2:12] = True
    masks[0, 5, 5] = False  # a hole
    masks[1, 18, 18] = True  # an island, without which it is the first one
    masks[3, 14:19, 1:6] = True
    after, kept = cleaned(masks, 10, 0.7)
    assert kept.tolist() == [2, 3]
    assert torch.equal(after, masks[2:])
    assert cleaned(masks[:0], 10, 0.7)[1].tolist() == []


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_batches_of_points_and_one_mask_a_point(models, picture, name):
    settings = {"model": str(models / name), "points": 3, "iou": 0.0, "stability": 0.0, "overlap": 1.0}
    whole, batches = (proposed(SAMSettings(**settings, batch=batch), picture) for batch in (64, 2))
    check_equal_sets(whole.masks(), batches.masks())
    one = proposed(SAMSettings(**settings, masks="one"), picture)
    assert set(one.levels) == {0}
    assert 0 < len(one) <= 9
    assert len(set(whole.levels)) > 1


def test_nothing_is_sure_enough(models, picture):
    assert len(proposed(SAMSettings(model=str(models / "sam"), points=2, iou=1.0), picture)) == 0
    assert len(proposed(EoMTSettings(model=str(models / "eomt"), score=1.0), picture)) == 0


@pytest.mark.parametrize("name", ["eomt", "mask2former"])
def test_segments_do_not_overlap(models, picture, name):
    found = proposed(EoMTSettings(model=str(models / name), score=0.0, visible=0.0, mask=0.0), picture)
    assert len(found)
    assert found.masks().sum(axis=0).max() == 1
    assert (found.areas > 0).all()
    assert set(found.levels) == {0}


def test_the_grid_has_the_centres_of_cells():
    assert grid(2, (40, 20)).tolist() == [[5, 10], [15, 10], [5, 30], [15, 30]]


@pytest.mark.parametrize(("name", "processor"), [("sam", "SamProcessor"), ("sam2", "Sam2Processor")])
def test_points_are_scaled_like_the_picture(models, picture, name, processor):
    proposer = SAMSettings(model=str(models / name)).proposer()
    points = grid(4, picture.shape[:2])[None, :, None]
    expected = getattr(transformers, processor)(proposer.processor)(
        images=picture, input_points=points.tolist(), return_tensors="pt"
    )
    found = grid(4, proposer.prepare(picture).input_hw)
    np.testing.assert_allclose(found, expected["input_points"][0, :, 0], atol=1e-4)


def test_stabilities():
    logits = torch.tensor([[[-2.0, -0.5], [0.5, 2.0]], [[-2.0, -2.0], [-3.0, -9.0]]])
    assert stabilities(logits).tolist() == pytest.approx([1 / 3, 0])


@pytest.mark.parametrize(
    ("settings", "change", "found"),
    [
        (SAMSettings, {"model_type": "clip"}, "a model of type 'clip'; expected sam, sam2"),
        (EoMTSettings, {"model_type": "sam"}, "a model of type 'sam'; expected eomt, mask2former"),
        (SAMSettings, None, "found no config.json"),
    ],
)
def test_other_models_are_refused(tmp_path, settings, change, found):
    if change is not None:
        (tmp_path / "config.json").write_text(json.dumps(change))
    with pytest.raises(BadInput, match=found):
        settings(model=str(tmp_path)).check()


def test_a_folder_without_weights_is_refused(tmp_path, models):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((models / "sam" / name).read_text())
    with pytest.raises(BadInput, match="found"):
        SAMSettings(model=str(tmp_path)).proposer()


def test_models_that_cannot_be_had_are_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match=r"Segment Anything nobody/nothing.*cannot be downloaded"):
        SAMSettings(model="nobody/nothing").check()
    with pytest.raises(BadInput, match="nowhere/model: found no such file or folder"):
        EoMTSettings(model="./nowhere/model").check()


def test_the_stage_records_the_weights(tmp_path, models, squares):
    settings = SAMSettings(model=str(models / "sam"), points=2, iou=0.0, stability=0.0)
    first = propose(settings, squares, out=tmp_path / "first")
    record = json.loads((first / "done.json").read_text())
    assert record["inputs"]["settings"]["model"]["file"] == "sam"
    assert "batch" not in record["inputs"]["settings"]
    assert tree(propose(settings, squares, out=tmp_path / "second")).keys() == tree(first).keys()
