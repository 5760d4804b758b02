"""`wsss ask` and `wsss run qa_clims`: from tags to a scored segmenter; after a kill, with corrected answers, from published weights."""

import json

import pytest
import torch
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import kill_at
from tests.end_to_end.taught import (
    AROUND,
    AUGMENT,
    FEW,
    STAGES,
    check_config,
    check_published_weights,
    check_whole,
    write_layout,
)
from tests.methods.test_questions import write_blip
from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.weights import read_weights

# as many sums in the same order as in the process that is killed
pytestmark = pytest.mark.usefixtures("one_torch_thread")

QUESTIONS = {"size": 32, "foreground": ["What kind of {} is in the photo?"], "background": ["what is above the {}?"]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds, and its BLIP beside it."""
    folder = tmp_path_factory.mktemp("config")
    blip = write_blip(folder / "blip")
    content = {**AROUND, "questions": {"blip": str(blip), **QUESTIONS}}
    content["classifier"] = {
        "clip": str(CONFIGS / "demo_clip"),
        "mask_prompts": False,
        "template": "a {}.",
        "augment": AUGMENT,
        # at ten times the rate the small network forgets all maps
        "training": {**FEW, "steps": 4, "lr": 0.001},
    }
    (folder / "qa_clims.yaml").write_text(yaml.safe_dump(content))
    return folder / "qa_clims.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings, one_torch_thread):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", "qa_clims", "--data", str(shapes), "--config", str(settings), "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_every_stage_is_there(whole, shapes):
    assert any(update["foreground"] > 0 for update in check_whole(whole, shapes, "QA-CLIMS"))
    assert (whole / "questions" / "done.json").exists()


@pytest.mark.slow
def test_killed_questions_and_training_end_in_the_same_bytes(tmp_path, whole, shapes, settings):
    content = yaml.safe_load(settings.read_text())
    (tmp_path / "ask.yaml").write_text(yaml.safe_dump(content["questions"]))
    words = ["ask", "--data", str(shapes), "--config", str(tmp_path / "ask.yaml"), "--out", str(tmp_path / "answers")]
    kill_at(tmp_path / "answers", "pictures/**/*.json", *words)
    assert not (tmp_path / "answers" / "answers.jsonl").exists()
    assert main(words) == 0
    assert tree(tmp_path / "answers") == tree(whole / "questions")

    given = {
        "init": str(whole / "baseline" / "weights.safetensors"),
        "answers": str(tmp_path / "answers" / "answers.jsonl"),
    }
    (tmp_path / "qa_clims.yaml").write_text(yaml.safe_dump({**content["classifier"], **given}))
    words = ["train", "qa_clims", "--data", str(shapes), "--config", str(tmp_path / "qa_clims.yaml")]
    words += ["--out", str(tmp_path / "qa_clims")]
    kill_at(tmp_path / "qa_clims", "checkpoint.pt", *words)
    assert not (tmp_path / "qa_clims" / "done.json").exists()
    assert main(words) == 0
    assert tree(tmp_path / "qa_clims") == tree(whole / "classifier")


@pytest.mark.slow
def test_corrected_answers_run_again(tmp_path, whole, shapes, settings):
    lines = [json.loads(line) for line in (whole / "questions" / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        line["background"] = {"what is behind it": "plain grey wall"}
    (tmp_path / "corrected.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    words = ["run", "qa_clims", "--data", str(shapes), "--config", str(settings), "--refiner", "crf"]
    words += ["--classifier.init", str(whole / "baseline"), "--classifier.answers", str(tmp_path / "corrected.jsonl")]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "questions").exists()
    assert not (tmp_path / "run" / "baseline").exists()
    one, _ = read_weights(whole / "classifier" / "weights.safetensors")
    two, _ = read_weights(tmp_path / "run" / "classifier" / "weights.safetensors")
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["voc", "coco", "folder"])
def test_every_layout_of_data(tmp_path, settings, shapes, layout, capsys):
    words = {"prompts": {"gnome": "garden gnome"}, "short": {"gnome": "gnome"}, "synonyms": {"fox": ["vixen"]}}
    data = write_layout(tmp_path, layout, shapes, "qa_clims", words)
    if layout == "folder":
        data += ["--classifier.answers_rule", "corrected"]
    run = ["run", "qa_clims", *data, "--config", str(settings), "--out", str(tmp_path / "run")]
    assert main(run) == 0, capsys.readouterr().err[-3000:]
    for stage in ("questions", *STAGES):
        assert (tmp_path / "run" / stage / "done.json").exists()


def test_published_weights_localize_without_training(tmp_path):
    check_published_weights(tmp_path, "qa_clims")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--classifier.clip", "none.pt"], "none.pt: found no such file"),
        (["--questions.blip", "none.pth"], "none.pth: found no such file"),
        (["--classifier.answers", "none.jsonl"], "none.jsonl: found no such file"),
    ],
    ids=["clip", "blip", "answers"],
)
def test_what_cannot_be_used_is_refused_before_the_baseline_is_trained(
    tmp_path, shapes, settings, options, found, capsys
):
    words = ["--data", str(shapes), "--config", str(settings), *options]
    assert main(["run", "qa_clims", *words, "--out", str(tmp_path / "run")]) == 2
    assert found in capsys.readouterr().err
    assert not (tmp_path / "run" / "baseline").exists()


def test_training_alone_asks_for_a_classifier(tmp_path, shapes, capsys):
    words = ["--clip", str(CONFIGS / "demo_clip")]
    assert main(["train", "qa_clims", "--data", str(shapes), *words, "--out", str(tmp_path / "out")]) == 2
    assert "`baseline`, which only `wsss run` trains" in capsys.readouterr().err


def test_published_settings(tmp_path, capsys):
    check_config(tmp_path, "qa_clims", "qa_clims_coco", capsys)
