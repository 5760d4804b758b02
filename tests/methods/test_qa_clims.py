"""QA-CLIMS on small networks: losses by hand, texts, batches with few pairs or none, memory, processes, a stop, errors of the user."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import check_a_stop, write_squares
from tests.methods.taught import (
    TRAINING,
    at_clip_size,
    bytes_kept,
    check_gradients,
    check_histories,
    drawn,
    picture_feature,
    run_on_two,
    text_feature,
    write_baseline,
    write_clip,
    write_gradients,
)
from tests.methods.test_cam import SMALL
from tests.parity import inputs
from tests.parity.fixtures import DATA
from wsss import clip_regions, launch
from wsss.data.augment import ClassifierAugment
from wsss.errors import BadInput
from wsss.methods import clims, qa_clims, questions
from wsss.networks.clip import CLIP
from wsss.pretrained import load_prompted_clip
from wsss.stages.localize import localize
from wsss.stages.train import HISTORY, train
from wsss.storage import read_json
from wsss.weights import WEIGHTS, read_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SAID = ("sky", "grass", "red", "wall", "", "rod", "grass", "sky")


def write_answers(path: Path, images) -> Path:
    """Some answers about each pair; about the last picture nothing but the class itself."""
    lines = []
    for index, name in enumerate(images.names):
        for cls in images.classes(index):
            class_name = images.class_names[cls]
            around = [SAID[(index + cls + k) % len(SAID)] for k in range(2 + index % 3)]
            if index == len(images) - 1:
                around = [class_name, class_name]
            own = [f"dark {class_name}", SAID[index % 5], "crimson"]
            answers = {"foreground": own, "background": around}
            lines.append(
                {"image": name, "class": class_name}
                | {key: {f"{n} {{}}": text for n, text in enumerate(texts)} for key, texts in answers.items()}
            )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def settings_of(folder: Path, images, **changes) -> qa_clims.QACLIMSSettings:
    """Settings with a CLIP without mask prompts, a classifier and answers in `folder`."""
    if not folder.exists():
        write_clip(folder / "clip", images)
        write_baseline(folder, images)
        write_answers(folder / "answers.jsonl", images)
    small = qa_clims.QACLIMSSettings(
        init=str(folder / WEIGHTS),
        answers=str(folder / "answers.jsonl"),
        clip=str(folder / "clip"),
        mask_prompts=False,
        # with few tokens in the small CLIP's texts
        template="a {}.",
        alpha=0.4,
        augment=ClassifierAugment(long_side=(32, 40), crop=32),
        training=TRAINING,
    )
    return dataclasses.replace(small, **changes)


@pytest.fixture
def settings(tmp_path, squares):
    return settings_of(tmp_path / "given", squares)


@pytest.fixture(scope="module")
def ovseg(tmp_path_factory) -> Path:
    """A small CLIP with mask prompts, as OVSeg's checkpoint holds it."""
    shapes = json.loads((DATA / "qa-clims" / "manifest-clip-small.json").read_text())
    state = {
        f"clip_adapter.clip_model.{name}": torch.from_numpy(np.asarray(inputs.tensor(name, tuple(shape), 3)))
        for name, shape in shapes.items()
    }
    path = tmp_path_factory.mktemp("ovseg") / "ovseg.pth"
    torch.save({"model": {**state, "sem_seg_head.weight": torch.zeros(3)}}, path)
    return path


def numbered(label: list[list[int]], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Maps, pictures and tags of a batch, and the positions of its pictures."""
    return *drawn(label, seed), torch.arange(len(label))


def both_tags(squares, count: int = 4):
    """The first pictures, with both classes in each."""
    return dataclasses.replace(squares, labels=np.ones((12, 2), bool)).subset(range(count))


def by_hand(settings: qa_clims.QACLIMSSettings, images, maps, image, label) -> dict[str, torch.Tensor]:
    """The losses pair by pair as the paper writes them, with the forward passes of transformers."""
    own, around = questions.read_answers(Path(settings.answers), images.class_names, images.class_names)
    clip = settings.load_clip().clip
    tau, weights = settings.temperature, settings.weights

    def text(phrase: str) -> torch.Tensor:
        return text_feature(clip, settings.template.replace("{}", phrase))

    losses = {"foreground": torch.zeros(()), "background": torch.zeros(())}
    for n, name in enumerate(images.names[: len(label)]):
        for c, cls in enumerate(images.class_names):
            behind = set(around.get((name, cls), ())) - {cls}
            if label[n, c] == 0 or not behind:
                continue
            said = [answer if cls in answer else f"{answer} {cls}" for answer in own[name, cls]]
            f = 0.5 * text(cls) + 0.5 * sum(text(phrase) for phrase in said) / len(said)
            x, picture = at_clip_size(maps[n : n + 1, c : c + 1]), at_clip_size(image[n : n + 1])
            mask = (x >= settings.alpha * x.max()).float()
            inside = picture_feature(clip, x * picture * mask)
            outside = picture_feature(clip, (1 - x) * picture * (1 - mask))
            others = torch.stack([text(phrase) for phrase in behind])
            s, s_l = inside @ f / tau, others @ inside / tau
            r, r_l = outside @ f / tau, others @ outside / tau
            losses["foreground"] = losses["foreground"] - torch.log(s.exp() / (s.exp() + s_l.exp().sum()))
            mean = r_l.exp().mean()
            losses["background"] = losses["background"] - torch.log(mean / (mean + r.exp()))
    # each of two processes has four pictures, whose sums are averaged
    share = settings.sum_over / len(label)
    return {
        "foreground": weights.foreground * share * losses["foreground"],
        "background": weights.background * share * losses["background"],
        "area": weights.area * maps.mean(),
    }


def test_losses_pair_by_pair(squares, settings):
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    learning = settings.trainable(images)
    for seed in range(3):
        # nothing is known around the last picture, whatever its tags
        maps, image, label, index = numbered([[1, 0], [0, 0], [1, 1], [1, 1]], seed)
        ours, wanted = learning.losses(maps, image, label, index), by_hand(settings, images, maps, image, label)
        assert list(ours) == list(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
            (gradient,) = torch.autograd.grad(value, maps, retain_graph=True)
            mine = torch.autograd.grad(ours[name], maps, retain_graph=True)[0]
            assert gradient.any()
            torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("label", [[[0, 0], [0, 0]], [[0, 1], [0, 0]]])
def test_batches_with_one_pair_and_with_none(squares, settings, ovseg, label, prompts):
    if prompts:
        settings = dataclasses.replace(settings, clip=str(ovseg), mask_prompts=True)
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    learning = settings.trainable(images).train()
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = learning({"image": pictures, "label": torch.tensor(label).float(), "index": torch.arange(2)})
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert learning.network.get_submodule("classifier").weight.grad.abs().max()
    for name in ("foreground", "background"):
        assert (losses[name] > 0) == torch.tensor(label).any()
    assert losses["area"] > 0


def test_pairs_of_which_nothing_is_known_cost_nothing(squares, settings, monkeypatch):
    seen, encode = [], clip_regions.encode_image
    monkeypatch.setattr(qa_clims, "encode_image", lambda clip, image: seen.append(len(image)) or encode(clip, image))
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    learning = settings.trainable(images)
    learning.losses(*numbered([[1, 1], [0, 1], [0, 0], [1, 1]]))
    assert seen == [2 * 3]
    seen.clear()
    maps, image, label, index = numbered([[1, 1]])
    losses = learning.losses(maps, image, label, index + 3)
    assert seen == []
    assert losses["foreground"] == losses["background"] == 0
    assert torch.equal(losses["area"], settings.weights.area * maps.mean())


@pytest.mark.parametrize(("group", "share"), [(1, 1 / 2), (2, 1), (4, 1)])
def test_pairs_are_summed_over_groups_and_these_averaged(squares, settings, group, share):
    images = both_tags(squares, 3)
    write_answers(Path(settings.answers), images)
    learning = dataclasses.replace(settings, sum_over=group).trainable(images)
    maps, image, label, index = numbered([[1, 1], [0, 1]])
    both = learning.losses(maps, image, label, index)
    single = [learning.losses(*(part[i : i + 1] for part in (maps, image, label, index))) for i in range(2)]
    for name, value in both.items():
        total = single[0][name] + single[1][name]
        torch.testing.assert_close(value, total * (1 / 2 if name == "area" else share), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("regions", "prompts"), [(2, False), (3, False), (6, False), (8, False), (2, True), (6, True)])
def test_few_regions_at_a_time_give_the_same(squares, settings, ovseg, regions, prompts, monkeypatch):
    seen, encode = [], clip_regions.encode_image
    monkeypatch.setattr(
        qa_clims, "encode_image", lambda clip, image, *more: seen.append(len(image)) or encode(clip, image, *more)
    )
    if prompts:
        settings = dataclasses.replace(settings, clip=str(ovseg), mask_prompts=True)
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    data = numbered([[1, 1], [1, 1], [0, 1]])
    results = []
    for most in (32, regions):
        seen.clear()
        learning = dataclasses.replace(settings, regions=most).trainable(images)
        losses = learning.losses(*data)
        results.append([*losses.values(), torch.autograd.grad(sum(losses.values()), data[0])[0]])
        assert max(seen) <= most
        assert sum(seen) >= 10
    for one, few in zip(*results, strict=True):
        torch.testing.assert_close(few, one, rtol=1e-5, atol=1e-6 * float(one.detach().abs().max()))


def test_few_regions_keep_less_for_the_backward_pass(squares, settings, ovseg):
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    data, kept = numbered([[1, 1]] * 3), []
    for regions in (32, 2):
        changed = dataclasses.replace(settings, regions=regions, clip=str(ovseg), mask_prompts=True)
        learning = changed.trainable(images)
        kept.append(bytes_kept(learning.encode.args[0].clip, lambda learning=learning: learning.losses(*data)))
    assert kept[1] < kept[0] / 3


def test_clip_neither_learns_nor_is_saved_and_reads_each_phrase_once(squares, settings, monkeypatch):
    read, encode_text = [], CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda self, tokens: read.append(len(tokens)) or encode_text(self, tokens))
    learning = settings.trainable(squares).train()
    clip = learning.encode.args[0].clip
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    batch = {"image": torch.randn(4, 3, 32, 32), "label": torch.from_numpy(squares.labels[:4]).float()}
    for _ in range(2):
        sum(learning({**batch, "index": torch.arange(4)}).values()).backward()
    own, around = questions.read_answers(Path(settings.answers), squares.class_names, squares.class_names)
    phrases = {text if pair[1] in text else f"{text} {pair[1]}" for pair, texts in own.items() for text in texts}
    phrases |= {text for pair, texts in around.items() for text in texts if text != pair[1]}
    assert read == [2, len(phrases)]
    assert not clip.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in clip.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert learning.state_dict().keys() == {f"network.{name}" for name in learning.network.state_dict()}
    # the texts' buffers would go to all processes in each step
    assert {name for name, _ in learning.named_buffers() if not name.startswith("network.")} == {"scale", "shift"}


# --- texts


def test_a_class_without_other_names_stands_for_itself(squares, settings):
    images = both_tags(squares, 1)
    line = {"image": images.names[0], "foreground": {}, "background": {"a {}": "sky"}}
    lines = [{**line, "class": name} for name in images.class_names]
    Path(settings.answers).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    texts = settings.trainable(images).texts(torch.zeros(2, dtype=torch.long), torch.arange(2))
    torch.testing.assert_close(texts.name.norm(dim=1), torch.ones(2))


PHRASES = [
    ("carpet", "carpet", "carpet car"),
    ("cars", "cars", "cars"),
    ("a red car", "a red car", "a red car"),
    ("sedan", "sedan car", "sedan car"),
    ("", " car", " car"),
]


@pytest.mark.parametrize(("answer", "published", "corrected"), PHRASES)
def test_what_a_class_may_be_called(answer, published, corrected):
    assert qa_clims.phrases([answer], "car", ()) == [published]
    assert qa_clims.phrases([answer], "car", (), corrected=True) == [corrected]


def test_short_names():
    for corrected in (False, True):
        found = qa_clims.phrases(["dinner tables", "wooden"], "dining table", ("table",), corrected)
        assert found == ["dinner tables", "wooden dining table"]


SURROUNDINGS = [
    ("aeroplane", ("plane", "airplanes", "sky", "sky", "aeroplane"), ["plane", "airplanes", "sky"], ["sky"]),
    ("person", ("people", "man", "men", "women", "nothing", "field"), ["people", "man", "men", "women", "nothing", "field"], ["nothing", "field"]),
    ("tvmonitor", ("tv", "tvs", "tv monitor", "desk"), ["tv", "tvs", "desk"], ["desk"]),
    ("diningtable", ("table", "tables", "", "room"), ["table", "tables", "", "room"], ["room"]),
    ("train", ("train station", "trains", "tracks"), ["train station", "trains", "tracks"], ["train station", "tracks"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answers", "published", "corrected"), SURROUNDINGS)
def test_what_is_around_a_class(name, answers, published, corrected):
    from wsss.data.voc import VOC_CLASSES
    from wsss.data.words import read_words

    words, cls = read_words("auto", VOC_CLASSES, "qa_clims"), VOC_CLASSES.index(name)
    own = (*words.short[cls], *words.synonyms[cls])
    assert qa_clims.surroundings(answers, words.prompts[cls], own) == published
    assert qa_clims.surroundings(answers, words.prompts[cls], own, corrected=True) == corrected


def test_plurals_of_classes_with_plural_names():
    from wsss.data.coco import COCO_CATEGORIES
    from wsss.data.words import read_words

    classes = tuple(COCO_CATEGORIES.values())
    words = read_words("auto", classes, "qa_clims")
    assert words.prompts == classes
    for name, answer in (("skis", "ski"), ("hot dog", "hot dogs"), ("wine glass", "wine glasses")):
        cls = classes.index(name)
        assert qa_clims.surroundings([answer], name, words.synonyms[cls]) == [answer]
        assert qa_clims.surroundings([answer], name, words.synonyms[cls], corrected=True) == []


def test_the_corrected_rule_is_used(squares, settings, tmp_path):
    (tmp_path / "words.yaml").write_text(yaml.safe_dump({"synonyms": {"red": ["grass", "sky", "wall", "rod"]}}))
    images = both_tags(squares)
    write_answers(Path(settings.answers), images)
    changed = dataclasses.replace(settings, words=str(tmp_path / "words.yaml"))
    counts = []
    for rule in ("published", "corrected"):
        texts = dataclasses.replace(changed, answers_rule=rule).trainable(images).texts
        counts.append(texts(torch.arange(3), torch.zeros(3, dtype=torch.long)).valid.sum().item())
    assert counts[0] > 0
    assert counts[1] == 0


def published_files(folder: Path, images, dim: int) -> dict[str, str]:
    """Answers and text features in the published formats."""
    rng = np.random.default_rng(0)
    said, behind, own, around = {}, {}, {}, {}
    for index, name in enumerate(images.names):
        for cls in images.classes(index):
            class_name = images.class_names[cls]
            answers = [f"kind {k}" for k in range(6)]
            said.setdefault(name, {})[class_name] = {
                "vqa": [(q, "raw") for q in questions.FOREGROUND],
                "answers": answers,
            }
            own.setdefault(name, {})[class_name] = {
                f"{answer} {class_name}": torch.from_numpy(rng.random((1, dim), np.float32)) for answer in answers[:5]
            }
            behind.setdefault(name, {})[class_name] = {
                "vqa": [(q, "raw") for q in questions.BACKGROUND],
                "answers": ["sky", "sea"] * 5,
            }
            feats = None if index == 0 else torch.from_numpy(rng.random((2, dim), np.float32))
            texts = [f"sky {name}", f"sea {name}{class_name}"]
            around.setdefault(name, {})[class_name] = {"answers": texts if index else [], "answer_feats": feats}
    files = {}
    for key, content in (
        ("answers", said),
        ("background_answers", {"profile": {"dtype": torch.float32}, "feats": around}),
        ("text_features", own),
        ("texts_alone", behind),
    ):
        files[key] = str(folder / f"{key}.npy")
        np.save(files[key], content, allow_pickle=True)
    return files


def test_published_files_teach(tmp_path, squares, settings, monkeypatch):
    read, encode_text = [], CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda self, tokens: read.append(len(tokens)) or encode_text(self, tokens))
    squares = squares.subset(range(2))
    files = published_files(tmp_path, squares, 16)
    alone = files.pop("texts_alone")
    learning = dataclasses.replace(settings, **files).trainable(squares)
    # the names, and the sixth phrase of each class, which the file lacks
    assert read == [2, 2]
    index, cls = 1, squares.classes(1)[0]
    texts = learning.texts(torch.tensor([0, index]), torch.tensor([squares.classes(0)[0], cls]))
    assert texts.valid.sum(1).tolist() == [0, 2]
    read.clear()
    files["background_answers"] = alone
    learning = dataclasses.replace(settings, **files).trainable(squares)
    assert read == [2, 2 + 2]
    texts = learning.texts(torch.tensor([0]), torch.tensor([squares.classes(0)[0]]))
    assert texts.valid.sum(1).tolist() == [2]


# --- processes, a stop, maps


def in_double(settings: qa_clims.QACLIMSSettings, images) -> qa_clims.QACLIMSObjective:
    torch.manual_seed(0)
    learning = settings.trainable(images).double().train()
    learning.encode.args[0].clip.double()
    learning.texts.func.double()
    return learning


def prepared(folder: Path):
    """Pictures with both tags each, settings for them, and a small BLIP."""
    from tests.methods.test_questions import write_blip

    images = dataclasses.replace(write_squares(folder / "squares", 12), labels=np.ones((12, 2), bool))
    return images, settings_of(folder / "given", images), write_blip(folder / "blip")


def two_processes(folder: Path) -> None:
    assert launch.processes() == 2
    images, settings, blip = launch.decided_by_first(lambda: prepared(folder))
    write_gradients(folder, lambda: in_double(settings, images))
    train(settings, images, out=folder / "two")
    questions.ask(
        questions.QuestionSettings(blip=str(blip), size=32), images.subset(range(3)), out=folder / "two-answers"
    )


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    run_on_two("tests.methods.test_qa_clims", tmp_path)
    images = dataclasses.replace(write_squares(tmp_path / "squares", 12), labels=np.ones((12, 2), bool))
    settings = settings_of(tmp_path / "given", images)
    for one in check_gradients(tmp_path, lambda: in_double(settings, images)):
        assert one["foreground"] > 0
    train(settings, images, out=tmp_path / "one")
    check_histories(tmp_path / "one", tmp_path / "two", rel=1e-3, abs=1e-5)
    asked = questions.QuestionSettings(blip=str(tmp_path / "blip"), size=32)
    answers = questions.ask(asked, images.subset(range(3)), out=tmp_path / "one-answers") / questions.ANSWERS
    assert answers.read_bytes() == (tmp_path / "two-answers" / questions.ANSWERS).read_bytes()


def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, settings):
    check_a_stop(lambda out: train(settings, squares, out=out), tmp_path, qa_clims.QACLIMSObjective, 2)
    terms = read_json(tmp_path / "whole" / HISTORY, "losses")
    assert set(terms[0]) == {"step", "lr", "foreground", "background", "area"}


def test_corrected_answers_are_another_stage(tmp_path, squares, settings):
    train(settings, squares, out=tmp_path / "qa_clims")
    path = Path(settings.answers)
    path.write_text(path.read_text().replace("crimson", "vermilion"))
    with pytest.raises(BadInput, match=r"made from something else: settings\.answers was answers\.jsonl \("):
        train(settings, squares, out=tmp_path / "qa_clims")


def test_what_it_learned_localizes(tmp_path, squares, settings):
    trained = train(settings, squares, out=tmp_path / "qa_clims")
    before, _ = read_weights(Path(settings.init))
    after, metadata = read_weights(trained / WEIGHTS)
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert metadata["backbone"] == SMALL.backbone
    localize(qa_clims.QACLIMSInference(scales=(1.0,)), squares, weights=trained, out=tmp_path / "cams")
    assert read_json(tmp_path / "cams" / "done.json", "record")["title"] == "QA-CLIMS"


@pytest.mark.slow
def test_half_precision(tmp_path, squares, settings, ovseg):
    own = dataclasses.replace(settings, clip=str(ovseg), mask_prompts=True)
    half = dataclasses.replace(own, training=dataclasses.replace(TRAINING, steps=1, precision="bf16"))
    full = dataclasses.replace(own, training=dataclasses.replace(TRAINING, steps=1))
    for name, chosen in (("half", half), ("full", full)):
        train(chosen, squares, out=tmp_path / name)
    first = [read_json(tmp_path / name / HISTORY, "losses")[0] for name in ("half", "full")]
    for name, value in first[1].items():
        assert first[0][name] == pytest.approx(value, rel=0.1, abs=0.02)


# --- errors of the user

BAD = [
    ({"init": clims.BASELINE}, "`baseline`, which only `wsss run` trains"),
    ({"answers": qa_clims.ASK}, "answers: found `ask`, which only `wsss run` does.*wsss ask"),
    ({"answers": "none.jsonl"}, r"none\.jsonl: found no such file"),
    ({"answers": "none.npy"}, "background_answers: found `same`, but none.npy has none"),
    ({"answers": "none.npy", "background_answers": "b.npy"}, r"none\.npy: found no such file"),
    ({"text_features": "none.npy"}, r"none\.npy: found no such file"),
    ({"colours": "clip"}, "weights trained with colours imagenet; expected colours clip"),
    ({"clip": "nowhere.pt"}, "no such file or folder"),
    (
        {"mask_prompts": True, "clip": "nowhere.pt"},
        "nowhere.pt: found no such file; expected a CLIP with visual.mask_em",
    ),
]


@pytest.mark.parametrize(("changes", "found"), BAD, ids=[str(sorted(changes)) + found[:4] for changes, found in BAD])
def test_bad_settings_that_meet_the_pictures(squares, settings, changes, found):
    with pytest.raises(BadInput, match=found):
        dataclasses.replace(settings, **changes).trainable(squares)


def test_answers_of_other_pictures_are_refused(squares, settings):
    write_answers(Path(settings.answers), squares.subset(range(5)))
    with pytest.raises(BadInput, match=r"answers.jsonl: found no answers for \d+ of \d+ pairs"):
        settings.trainable(squares)


def test_features_of_another_clip_are_refused(tmp_path, squares, settings):
    squares = squares.subset(range(2))
    files = published_files(tmp_path, squares, 8)
    del files["texts_alone"]
    with pytest.raises(BadInput, match=r"text_features.npy: found a text feature of 8 numbers; expected 16"):
        dataclasses.replace(settings, **files).trainable(squares)


@pytest.mark.parametrize("change", ["none", "shape", "part", "clip"])
def test_bad_clips_with_mask_prompts(tmp_path, ovseg, change):
    state = torch.load(ovseg, weights_only=True)["model"]
    prefix = "clip_adapter.clip_model."
    key = f"{prefix}visual.mask_embedding"
    if change == "none":
        del state[key]
    elif change == "shape":
        state[key] = state[key][:, :9]
    elif change == "part":
        del state[f"{prefix}visual.proj"]
    else:
        state = {"layer.weight": torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "bad.pth")
    found = {
        "none": r"no visual\.mask_embedding .*mask_prompts to false",
        "shape": r"mask prompts of \(3, 9, 128\); expected \(depth, 16, 128\)",
        "part": r"1 tensors missing \(visual\.proj\)",
        "clip": r"no visual\.mask_embedding \(first tensors: layer\.weight\)",
    }[change]
    with pytest.raises(BadInput, match=found):
        load_prompted_clip(str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "no place"},
        {"regions": 1},
        {"sum_over": 0},
        {"name_weight": 1.5},
        {"alpha": -0.1},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_bad_settings(changes):
    with pytest.raises(BadInput):
        qa_clims.QACLIMSSettings(**changes)
    with pytest.raises(BadInput, match=r"weights\.area"):
        qa_clims.QACLIMSWeights(area=-1)


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
