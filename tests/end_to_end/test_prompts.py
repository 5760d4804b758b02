"""Text prompts, with tiny networks of random weights that are made here."""

import numpy as np
import pytest
import torch
import transformers

from tests.end_to_end.conftest import ok, wsss
from tests.regions.test_networks import sam2
from wsss import memory
from wsss.configs import CONFIGS
from wsss.data.files import read_cams
from wsss.errors import BadInput
from wsss.methods.prompts import PromptsInference, joined_map
from wsss.prompting.finder import Found
from wsss.run import read_record
from wsss.stages.localize import localize

SIDE = 56
SMALL = {"num_attention_heads": 2, "intermediate_size": 32, "num_layers": 1}


def sam3():
    """A SAM 3 that sees pictures of 56x56."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "pretrain_image_size": SIDE,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 1022,
        "eos_token_id": 1023,
    }
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=text,
        geometry_encoder_config={**SMALL, "hidden_size": 32},
        detr_encoder_config={**SMALL, "hidden_size": 32},
        detr_decoder_config={**SMALL, "hidden_size": 32, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    return transformers.Sam3Model(config), transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})


def grounding_dino(folder):
    """A Grounding DINO; the network knows the full stop by its number in BERT's vocabulary."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = {101: "[CLS]", 102: "[SEP]", 0: "[PAD]", 100: "[UNK]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words |= dict(enumerate(letters, 200))
    (folder / "vocab.txt").write_text("\n".join(words.get(number, f"[unused{number}]") for number in range(1100)))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    config = transformers.GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2],
            "window_size": 2,
            "image_size": SIDE,
            "out_indices": [2, 3, 4],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": 1100,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        num_queries=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
    )
    processor = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    return transformers.GroundingDinoForObjectDetection(config), processor, tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory, one_torch_thread):
    """A folder of each network."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = sam3()
        for part in (model, processor, transformers.AutoTokenizer.from_pretrained(CONFIGS / "demo_clip")):
            part.save_pretrained(folder / "sam3")
        for part in grounding_dino(folder):
            part.save_pretrained(folder / "dino")
        for part in sam2():
            part.save_pretrained(folder / "sam2")
    return folder


def test_maps_of_sam3_are_those_of_its_processor(models, squares):
    settings = PromptsInference(model=str(models / "sam3"), threshold=0.0)
    settings.check(squares)
    localizer = settings.localizer(squares)
    picture = squares.read(0)
    height, width = picture.shape[:2]
    maps = localizer.cams(localizer.prepare(picture), (height, width), np.ones(2, bool)).maps
    model = transformers.Sam3Model.from_pretrained(models / "sam3").eval()
    processor = transformers.Sam3ImageProcessor.from_pretrained(models / "sam3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(models / "sam3")
    for name, found in zip(squares.class_names, maps, strict=True):
        tokens = tokenizer([name], padding="max_length", max_length=32, return_tensors="pt")
        with torch.no_grad():
            out = model(**processor(images=picture, return_tensors="pt"), **tokens)
        (wanted,) = processor.post_process_instance_segmentation(out, threshold=0.0, target_sizes=[(height, width)])
        assert len(wanted["scores"]) == 6
        covered = (wanted["masks"] * (1 + wanted["scores"][:, None, None]) / 2).amax(0)
        inside = covered > 0
        np.testing.assert_allclose(found[inside], covered[inside], atol=1e-5)
        assert (found[~inside] <= 0.5).all()


@pytest.mark.parametrize("masks", ["sam2", "none"])
def test_prompts_keep_to_the_memory_budget(models, squares, masks, tmp_path):
    source = masks if masks == "none" else str(models / masks)
    settings = PromptsInference(model=str(models / "dino"), masks=source)
    memory.choose("1MB")
    try:
        with pytest.raises(BadInput, match=r"takes about .* or shrink the picture"):
            localize(settings, squares.subset([0]), out=tmp_path / "maps")
    finally:
        memory.choose(None)


@pytest.mark.parametrize("masks", ["sam2", "none"])
def test_objects_of_grounding_dino_belong_to_their_best_word(models, squares, masks):
    source = masks if masks == "none" else str(models / masks)
    settings = PromptsInference(model=str(models / "dino"), masks=source, threshold=0.0)
    settings.check(squares)
    finder = settings.finder(squares)
    picture = squares.read(0)
    found = finder.found(finder.prepare(picture), [0, 1])
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(models / "dino").eval()
    processor = transformers.GroundingDinoImageProcessor.from_pretrained(models / "dino")
    tokens = transformers.BertTokenizer.from_pretrained(models / "dino")(["red. blue."], return_tensors="pt")
    with torch.no_grad():
        out = model(**processor(images=picture, return_tensors="pt"), **tokens)
    # [CLS] r e d . b l u e . [SEP], one token for each letter
    by_word = torch.stack([out.logits[0, :, part].sigmoid().amax(1) for part in (slice(1, 4), slice(5, 9))])
    scores, best = by_word.max(0)
    assert sum(len(one.scores) for one in found) == 8
    for number, one in enumerate(found):
        torch.testing.assert_close(one.scores, scores[best == number], atol=1e-5, rtol=1e-4)
        assert one.masks.shape == (len(one.scores), *picture.shape[:2])
        assert ((one.masks >= 0) & (one.masks <= 1)).all()


def test_the_surest_object_is_on_top():
    masks = torch.zeros(2, 1, 4)
    masks[0, 0, :2], masks[1, 0, 1:3] = 0.9, 0.6
    masks[1, 0, 3] = 0.4
    found = joined_map(Found(torch.tensor([0.4, 0.8]), masks), (1, 4))
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.9, 0.9, 0.32]]))


def test_command_line(models, shapes, tmp_path):
    words = ("localize", "prompts", "--data", shapes, "--model", models / "sam3", "--threshold", "0.0")
    ok(*words, "--out", tmp_path / "cams")
    classes = [read_cams(path)[0].tolist() for path in (tmp_path / "cams").glob("*.npz")]
    # all classes are found by a network that is asked for a score of 0
    assert all(found == [0, 1, 2, 3, 4] for found in classes)
    assert read_record(tmp_path / "cams")["supervision"]["sam3"] == ["masks"]
    ok(*words, "--words_only", "false", "--out", tmp_path / "tagged")
    assert any(read_cams(path)[0].tolist() != [0, 1, 2, 3, 4] for path in (tmp_path / "tagged").glob("*.npz"))


def test_what_cannot_work_is_one_line(models, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("wsss.data.images.Images.read", lambda *_: pytest.fail("a picture was decoded"))
    for source, message in (
        ("facebook/sam3", "accept their licence"),
        (models / "sam2", "expected sam3"),
        (tmp_path / "missing", "missing: found no such file or folder"),
    ):
        done = wsss("localize", "prompts", "--data", shapes, "--model", source, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
