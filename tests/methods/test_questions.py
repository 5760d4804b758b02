"""Questions on a small BLIP: answers against transformers' own way, one look a picture, a stop, files of answers, errors of the user."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering
from transformers.utils import logging as transformers_logging

from tests.conftest import tree
from tests.parity import inputs
from wsss import memory
from wsss.errors import BadInput
from wsss.methods import questions
from wsss.networks import blip
from wsss.pretrained import load_blip
from wsss.storage import read_json

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TEXT = """[PAD] [UNK] [CLS] [SEP] [MASK] what is the photo kind of in this red blue ? type also called usually another word for
    name above under behind around next to left side right scene environment place sky trees grass people dogs ##s wall '"""
WORDS = TEXT.split()


def write_blip(folder: Path, size: int = 32, seed: int = 0) -> Path:
    """A BLIP of random weights that answers questions; in a folder of transformers, its positions for `size` pixels."""
    config = BlipConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": size,
            "patch_size": 8,
        },
        text_config={
            "vocab_size": len(WORDS) + 2,
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "is_decoder": True,
            "bos_token_id": len(WORDS),
        },
    )
    model = BlipForQuestionAnswering(config)
    for name, value in model.named_parameters():
        # larger than new weights are, so that answers differ
        value.data = torch.from_numpy(inputs.tensor(name, tuple(value.shape), seed, gain=2.0))
    # [SEP] now and then
    model.text_decoder.cls.predictions.bias.data[3] += 2
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def settings(folder):
    return questions.QuestionSettings(blip=str(folder), size=32)


@functools.cache
def as_published(folder: Path) -> tuple[BlipForQuestionAnswering, BertTokenizer]:
    """The network as the library has it, with the norms and the special tokens that it lacks."""
    config = BlipConfig.from_pretrained(folder)
    config.vision_config.layer_norm_eps = 1e-6
    model = BlipForQuestionAnswering.from_pretrained(folder, config=config).eval()
    model.config.text_config.sep_token_id, model.config.text_config.pad_token_id = 3, 0
    return model, BertTokenizer.from_pretrained(folder)


def as_transformers_answer(folder: Path, pixels: torch.Tensor, question: str) -> str:
    """One question about one picture through the library's own functions."""
    model, tokenizer = as_published(folder)
    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    ids[:, 0] = len(WORDS) + 1
    (answer,) = model.generate(ids, pixels, num_beams=3, max_length=10, min_length=1).tolist()
    answer = answer[1 : answer.index(3) if 3 in answer else None]
    return tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=True)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_those_of_transformers_and_pictures_are_encoded_once(
    tmp_path, squares, settings, folder, monkeypatch
):
    squares, looks, embed = squares.subset(range(3)), [], blip.BLIP.embed
    monkeypatch.setattr(blip.BLIP, "embed", lambda self, pixels: looks.append(len(pixels)) or embed(self, pixels))
    out = questions.ask(settings, squares, out=tmp_path / "answers")
    assert looks == [1] * 3
    found = lines(out / questions.ANSWERS)
    assert [(line["image"], line["class"]) for line in found] == [
        (name, squares.class_names[cls]) for index, name in enumerate(squares.names) for cls in squares.classes(index)
    ]
    said = 0
    for line in found[:2]:
        assert tuple(line["foreground"]) == questions.FOREGROUND
        assert tuple(line["background"]) == questions.BACKGROUND
        pixels = settings.prepare(squares.read(squares.names.index(line["image"])))
        for question, answer in (line["foreground"] | line["background"]).items():
            raw = as_transformers_answer(folder, pixels, question.replace("{}", line["class"]))
            assert line.get("said", {}).get(question, answer) == raw
            assert questions.lemma(raw) == answer
            said += bool(raw)
    assert said > 8
    assert len({answer for line in found for answer in line["foreground"].values()}) > 2
    assert any("said" in line for line in found) == any(
        questions.lemma(text) != text for line in found for text in line.get("said", {}).values()
    )


def test_few_questions_at_a_time_give_the_same(tmp_path, squares, settings):
    few = squares.subset([0])
    one = questions.ask(settings, few, out=tmp_path / "one")
    two = questions.ask(dataclasses.replace(settings, batch=2), few, out=tmp_path / "two")
    assert (one / questions.ANSWERS).read_bytes() == (two / questions.ANSWERS).read_bytes()


def test_questions_keep_to_the_memory_budget(tmp_path, squares, settings):
    memory.choose("1MB")
    try:
        with pytest.raises(BadInput, match=r"takes about .* or set a smaller batch"):
            questions.ask(settings, squares.subset([0]), out=tmp_path / "answers")
    finally:
        memory.choose(None)


def test_a_stop_goes_on(tmp_path, squares, settings, monkeypatch):
    labels = squares.labels.copy()
    labels[3] = False  # nothing is asked about a picture without tags
    images = dataclasses.replace(squares, labels=labels).subset(range(5))
    questions.ask(settings, images, out=tmp_path / "whole")
    asked, answers = [], blip.BLIP.answers

    def killed(self, *given):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(blip.BLIP, "answers", killed)
        with pytest.raises(KeyboardInterrupt):
            questions.ask(settings, images, out=tmp_path / "killed")
        assert not (tmp_path / "killed" / questions.ANSWERS).exists()
        questions.ask(settings, images, out=tmp_path / "killed")
    assert len(asked) == 1 + 4
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    record = read_json(tmp_path / "whole" / "done.json", "record")
    assert record["result"] == {"images": 5, "pairs": int(labels[:5].sum())}


def test_own_questions_and_names(tmp_path, squares, settings):
    (tmp_path / "words.yaml").write_text("prompts: {red: 'red dogs'}\n")
    own = dataclasses.replace(
        settings, words=str(tmp_path / "words.yaml"), foreground=("what is {} ?",), background=("what is behind {} ?",)
    )
    asked = []
    network = own.load()
    network.answers = lambda pixels, questions, batch: asked.extend(questions) or ["dogs"] * len(questions)
    questions._answers(own, network, torch.zeros(1), ["red dogs", "blue"])
    assert asked == ["what is red dogs ?", "what is behind red dogs ?", "what is blue ?", "what is behind blue ?"]
    out = questions.ask(own, squares.subset([0]), out=tmp_path / "answers")
    assert set(lines(out / questions.ANSWERS)[0]) - {"said"} == {"image", "class", "foreground", "background"}


def test_what_blip_said_stands_beside_its_singular(settings, squares):
    asked = dataclasses.replace(settings, foreground=("a {}",), background=("b {}", "c {}"))
    line = json.loads(questions._line(asked, "ä\udcff", "red", ["trees", "hot dogs", ""]))
    assert line == {
        "image": "ä\udcff",
        "class": "red",
        "foreground": {"a {}": "tree"},
        "background": {"b {}": "hot dogs", "c {}": ""},
        "said": {"a {}": "trees"},
    }
    assert "ä" in questions._line(asked, "ä", "red", ["", "", ""])


# --- the network's sources


def published(folder: Path, path: Path) -> Path:
    """The folder's weights under BLIP's own names, wrapped as BLIP wraps them."""
    state = load_blip(str(folder), "unused", 32).model.state_dict()
    reversed_names = (
        (r"vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
        (r"vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
        (r"vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
        (r"vision_model\.post_layernorm", "visual_encoder.norm"),
        (r"vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
        (r"layer_norm([12])", r"norm\1"),
        (r"self_attn\.qkv", "attn.qkv"),
        (r"self_attn\.projection", "attn.proj"),
    )
    renamed = {}
    for name, value in state.items():
        for ours, theirs in reversed_names:
            name = re.sub(ours, theirs, name)
        renamed[name] = value
    renamed["text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save({"model": renamed}, path)
    return path


def test_blips_own_file_and_the_folder_are_the_same(tmp_path, folder, monkeypatch):
    # heads of 64 channels are published; these have 16
    make = blip.from_published
    monkeypatch.setattr(blip, "from_published", lambda state, where: make(state, where, heads=(2, 2)))
    path = published(folder, tmp_path / "model_vqa.pth")
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    asked = ["what is the red ?", "what is behind the blue ?"]
    answers = []
    for source, words in ((folder, "unused"), (path, str(folder / "vocab.txt")), (path, str(folder))):
        network = load_blip(str(source), words, 48)
        assert network.size == 48
        # resized from 4x4, and used
        assert network.model.vision_model.embeddings.position_embedding.shape == (1, 37, 32)
        answers.append((network.answers(pixels, asked), network.embed(pixels)))
    for said, picture in answers[1:]:
        assert said == answers[0][0]
        torch.testing.assert_close(picture, answers[0][1], rtol=0, atol=1e-6)
    epsilons = {module.eps for module in network.model.vision_model.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert epsilons == {1e-6}


def test_a_vocabulary_must_belong_to_the_network(tmp_path, folder):
    other = write_blip(tmp_path / "other")
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(BadInput, match=r"a vocabulary of 6 words for a network with \d+; expected \d+, since two mark"):
        load_blip(str(other), "unused", 32)
    (other / "vocab.txt").unlink()
    assert load_blip(str(other), str(folder / "vocab.txt"), 32).answer_start == len(WORDS)
    with pytest.raises(BadInput, match=r"none\.txt: found no such file"):
        load_blip(str(other), str(tmp_path / "none.txt"), 32)


@pytest.mark.parametrize("size", [7, 33])
def test_pictures_are_made_of_whole_patches(folder, size):
    with pytest.raises(BadInput, match=f"size: found {size}; expected a multiple of the patch size, 8"):
        load_blip(str(folder), "unused", size)


def test_sources_that_are_no_blip(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadInput, match=r"BLIP nobody/no-such-blip: found .*There is no such folder or file, and it cannot be"
    ):
        load_blip("nobody/no-such-blip", "unused", 32)
    with pytest.raises(BadInput, match=r"none\.pth: found no such file"):
        load_blip("none.pth", "unused", 32)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"other names than BLIP's \(first tensors: layer.weight\)"):
        load_blip(str(tmp_path / "other.pth"), "unused", 32)
    path = published(folder, tmp_path / "captions.pth")
    state = torch.load(path, weights_only=True)["model"]
    captions = {name: value for name, value in state.items() if not name.startswith("text_encoder.")}
    torch.save({"model": captions}, path)
    with pytest.raises(BadInput, match=r"no complete BLIP for question answering"):
        load_blip(str(path), "unused", 32)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="cannot be read as a BLIP"):
        load_blip(str(empty), "unused", 32)
    clip = Path(questions.__file__).parents[1] / "configs" / "demo_clip"
    with pytest.raises(BadInput, match="BLIP"):
        load_blip(str(clip), "unused", 32)


# --- files of answers


def written(path: Path, *given: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in given))
    return path


GOOD = {"image": "a", "class": "red", "foreground": {"q {}": "crimson"}, "background": {"p {}": "sky", "r {}": "sky"}}


def test_answers_are_read_by_picture_and_class(tmp_path):
    path = written(tmp_path / "answers.jsonl", GOOD, {**GOOD, "class": "dark blue", "extra": 1}, "")
    for source in (path, tmp_path):
        own, around = questions.read_answers(source, ("red", "blue"), ("red", "dark blue"))
        assert own == {("a", "red"): ("crimson",), ("a", "blue"): ("crimson",)}
        assert around["a", "red"] == ("sky", "sky")


BROKEN = [
    ('{"image": "a"', r"line 2: found broken JSON"),
    ("[1]", r"line 2: found \[1\]"),
    ({**GOOD, "image": 3}, "line 2: found .*Write `image` and `class` as strings"),
    ({**GOOD, "class": "rod"}, r"line 2: found the class 'rod'; .* Did you mean 'red'\?"),
    (GOOD, r"line 2: found \('a', 'red'\) again"),
    ({"image": "b", "class": "red"}, "line 2: found None as `foreground`"),
    ({**GOOD, "image": "b", "background": ["sky"]}, r"line 2: found \['sky'\] as `background`"),
    ({**GOOD, "image": "b", "background": {"p": 1}}, "line 2: found .* as `background`"),
]


@pytest.mark.parametrize(("line", "found"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_named(tmp_path, line, found):
    path = written(tmp_path / "answers.jsonl", GOOD, line)
    with pytest.raises(BadInput, match=found):
        questions.read_answers(path, ("red", "blue"), ("red", "blue"))


def test_answers_of_other_pictures(squares):
    own = {(name, "red"): ("crimson",) for name in squares.names}
    with pytest.raises(BadInput, match=r"here: found no answers for \d+ of \d+ pairs .*'blue' in 'teil .*wsss ask"):
        questions.of_images(squares, ("red", "blue"), own, own, "here")


# --- published files


def test_published_answers_are_chosen_by_question(tmp_path):
    pairs = [(question, "X") for question in ("old {}", *questions.FOREGROUND)]
    entry = {"vqa": pairs, "answers": [str(number) for number in range(7)]}
    np.save(tmp_path / "vqa.npy", {"2007_000032": {"dining table": entry}}, allow_pickle=True)
    found = questions.read_published_answers(tmp_path / "vqa.npy", questions.FOREGROUND[::-1])
    assert found == {("2007_000032", "dining table"): ("6", "5", "4", "3", "2", "1")}
    with pytest.raises(BadInput, match=r"no answers to 'what is above the \{\}\?'"):
        questions.read_published_answers(tmp_path / "vqa.npy", questions.BACKGROUND)
    with pytest.raises(BadInput, match=r"no answers to 'what is above the \{\}\?'"):
        questions.read_published_background(tmp_path / "vqa.npy", questions.BACKGROUND)


BAD_PUBLISHED = [
    ({}, "found a dict"),
    (np.zeros(3), "found a ndarray"),
    ({"a": 1}, "no classes below 'a'"),
    ({"a": {"red": [1]}}, "no list of answers"),
    ({"a": {"red": {"vqa": [(q, "x") for q in questions.BACKGROUND], "answers": ["x"]}}}, "no list of answers"),
    ({"a": {"red": {"vqa": [(q, "x") for q in questions.BACKGROUND], "answers": [1] * 10}}}, "no list of answers"),
    (
        {
            "a": {
                "red": {"vqa": [(q, "x") for q in questions.BACKGROUND], "answers": ["x"] * 10},
                "blue": {"vqa": [("q", "x")], "answers": ["x"]},
            }
        },
        "with fewer answers than the first",
    ),
    ({"profile": {}, "feats": {"a": {"red": {"answers": "sky"}}}}, "without answers"),
    (
        {"profile": {}, "feats": {"a": {"red": {"answers": ["sky"], "answer_feats": np.zeros((2, 3))}}}},
        "other features than answers",
    ),
    (
        {"profile": {}, "feats": {"a": {"red": {"answers": ["sky"], "answer_feats": np.array([["x"]])}}}},
        "other features than answers",
    ),
]


@pytest.mark.parametrize(("content", "found"), BAD_PUBLISHED, ids=range(len(BAD_PUBLISHED)))
def test_bad_published_files(tmp_path, content, found):
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    with pytest.raises(BadInput, match=found):
        questions.read_published_background(tmp_path / "bad.npy", questions.BACKGROUND)


def test_bad_published_features(tmp_path):
    for content in ({"a": {"red": [1]}}, {"a": {"red": {"red": np.zeros(3)}}}):
        np.save(tmp_path / "bad.npy", content, allow_pickle=True)
        with pytest.raises(BadInput, match=r"without phrases|no feature of 'red'"):
            questions.read_published_features(tmp_path / "bad.npy")


@pytest.mark.parametrize(
    "changes",
    [
        {"foreground": ("what",)},
        {"background": ()},
        {"batch": 0},
        {"foreground": ("a {}", "a {}")},
        {"background": questions.FOREGROUND},
    ],
    ids=str,
)
def test_bad_settings(changes):
    with pytest.raises(BadInput):
        questions.QuestionSettings(**changes)


def test_a_bad_picture_is_named(tmp_path, squares, settings):
    squares.paths[1].write_bytes(b"no picture")
    with pytest.raises(BadInput, match=str(squares.paths[1])):
        questions.ask(settings, squares, out=tmp_path / "answers")
