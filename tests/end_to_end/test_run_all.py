"""`wsss run all`: every method under one protocol; shared stages, failures, kills, and the comparison at the end."""

import copy
import dataclasses
import json
import shutil

import pytest
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at
from wsss import registry
from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.data.shapes import make_shapes
from wsss.methods import METHODS, clip, method, vwl
from wsss.protocol import plan
from wsss.settings import build

# as many sums in the same order as in the process that is killed
pytestmark = pytest.mark.usefixtures("one_torch_thread")

FEW = {"batch": 4, "epochs": None, "steps": 2, "workers": 0, "checkpoint_steps": 1}
CONTENT = {
    "common": {
        "backbone": "test_resnet",
        "init": "none",
        "frozen": "nothing",
        "classifier_lr": 1.0,
        "augment": TINY["classifier"]["augment"],
        "training": {**FEW, "optimizer": "adamw", "lr": 0.003},
        "scales": [1.0],
        "clip": str(CONFIGS / "demo_clip"),
        "segmenter": {**TINY["segmenter"], "training": {**FEW, "accumulate": 1, "lr": 0.001}},
        "refiner": "crf",
    },
    "runs": {
        "cam": {},
        "mirrored": {"method": "cam", "inference": {"flip": False}},
        "clims": {"classifier": {"training": {"steps": 2, "lr": 0.01}}, "segmenter": {"init": "classifier"}},
        "clip_es": {"inference": {"clip": "nowhere.pt"}},
    },
}  # fmt: skip
FINISHED = ("cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions", "predictions-scores")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Very few pictures."""
    return make_shapes(tmp_path_factory.mktemp("data") / "few", train=8, val=4, size=48)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings of runs that take seconds; the CLIP of one of them is not there."""
    path = tmp_path_factory.mktemp("config") / "all.yaml"
    path.write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    return path


def run_all(data, config, out, *options):
    words = ["run", "all", "--data", str(data), "--config", str(config), "--out", str(out)]
    return main([*words, "--methods", "cam, clims, clip_es", *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few, config, one_torch_thread):
    """Runs that nothing disturbed, but for the one that cannot be."""
    out = tmp_path_factory.mktemp("runs") / "all"
    with pytest.raises(SystemExit) as status:
        run_all(few, config, out)
    assert status.value.code == 1
    return out


@pytest.mark.slow
def test_each_run_is_whole_in_its_folder(whole):
    for name in ("cam", "mirrored", "clims"):
        assert all((whole / name / stage / "done.json").exists() for stage in FINISHED)
        assert (whole / name / "report.html").exists()
    assert yaml.safe_load((whole / "clims" / "settings.yaml").read_text())["classifier"]["clip"] == str(
        CONFIGS / "demo_clip"
    )


@pytest.mark.slow
def test_a_baseline_is_trained_once(whole):
    stages = (("cam", "classifier"), ("mirrored", "classifier"), ("clims", "baseline"))
    weights = [whole / name / stage / "weights.safetensors" for name, stage in stages]
    assert len({path.stat().st_ino for path in weights}) == 1
    assert not (whole / "cam" / "cams").samefile(whole / "mirrored" / "cams")
    assert (whole / "cam" / "cams" / "done.json").read_bytes() != (
        whole / "mirrored" / "cams" / "done.json"
    ).read_bytes()


@pytest.mark.slow
def test_a_failure_is_told_and_does_not_lose_the_others(whole, few, config, capsys, caplog):
    with pytest.raises(SystemExit):
        run_all(few, config, whole)
    said = capsys.readouterr()
    assert "clip_es failed: nowhere.pt: found no such file" in caplog.text
    assert "wsss: 1 of 4 runs failed: clip_es" in said.err
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["cam", "mirrored", "clims", "clip_es"]
    assert "clip_es: failed: nowhere.pt: found no such file" in said.out
    compared = json.loads((whole / "compare.json").read_text())
    assert [run["status"] for run in compared["runs"]] == ["finished"] * 3 + ["failed"]
    for run in compared["runs"][:3]:
        assert set(run["scores"]) == {"maps", "pseudo masks", "predictions"}
        assert all(score["comparable"] for score in run["scores"].values())
    protocol = compared["runs"][2]["protocol"]
    assert protocol["method"] == "CLIMS (improved)"
    assert (protocol["backbone"], protocol["initial weights"], protocol["CLIP"]) == ("test_resnet", "none", "demo_clip")
    assert protocol["refiner"] == "dense CRF on thresholded maps"
    page = (whole / "compare.html").read_text()
    assert "failed: nowhere.pt" in page
    assert page.count('<div class="row">') >= 4


@pytest.mark.slow
def test_any_error_of_a_method_leaves_the_others(tmp_path, whole, few, config, monkeypatch, capsys):
    shutil.copytree(whole / "cam", tmp_path / "all" / "cam")

    def stops(settings, images):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(vwl.VWLSettings, "check", stops)
    with pytest.raises(SystemExit) as status:
        run_all(few, config, tmp_path / "all", "--methods", "vwl, cam")
    assert status.value.code == 1
    failed = json.loads((tmp_path / "all" / "vwl" / "failed.json").read_text())
    assert failed["error"] == "RuntimeError: no memory left"
    assert (tmp_path / "all" / "mirrored" / "report.html").exists()
    assert "vwl: failed: RuntimeError: no memory left" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_finds_the_data_set_by_itself(tmp_path, whole, capsys):
    assert main(["compare", str(whole / "cam"), str(whole / "clims"), "--out", str(tmp_path / "out")]) == 0
    assert "CLIMS (improved)" in capsys.readouterr().out
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count('<div class="row">') >= 4
    assert main(["compare", str(whole), "--out", str(tmp_path / "all")]) == 0
    assert "clip_es: failed" in capsys.readouterr().out


def test_settings_that_do_not_fit_are_refused_before_anything_is_made(tmp_path, few, capsys):
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump({"runs": {"cam": {"classifier": {"bakbone": "resnet18"}}}}))
    assert run_all(few, path, tmp_path / "all", "--methods", "cam") == 2
    assert f"{path}: runs.cam.classifier.bakbone: no such setting" in (error := capsys.readouterr().err)
    assert "Did you mean backbone?" in error
    assert not (tmp_path / "all").exists()
    path.write_text(yaml.safe_dump({"common": {"clip": "x"}, "clip": {"init": "none"}}))
    assert run_all(few, path, tmp_path / "all") == 2
    assert "clip: found it together with common.clip" in capsys.readouterr().err


def test_preset_fits_every_method():
    content = yaml.safe_load((CONFIGS / "all_small.yaml").read_text())
    methods = {name: registry.sections(method(name)) for name in METHODS if "run" in registry.verbs(name)}
    planned = plan(methods, content["common"], content["runs"])
    assert {one.method for one in planned} == set(methods)
    for one in planned:
        settings = one.settings(methods)
        settings["refiner"].check(None)
        # without a classifier that has a backbone there is none to start from
        alone = one.method in ("clip_es", "weclip", "corrclip", "prompts")
        assert settings["segmenter"].init == ("none" if alone else "classifier")
        dataclasses.replace(settings["segmenter"], init="none").check(None)
        assert settings["segmenter"].network.backbone == "resnet10t"
        assert (settings["test"].scales, settings["test"].crf) == ((1.0,), None)
    assert build(clip.CLIPSettings, content["clip"]).init == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["cam/classifier/checkpoint.pt", "mirrored/cams/*.npz", "clims/classifier/checkpoint.pt"]
)
def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path, whole, few, config, moment):
    out = tmp_path / "all"
    words = ("run", "all", "--data", few, "--config", config, "--out", out, "--methods", "cam,clims,clip_es")
    kill_at(out, moment, *words)
    assert not (out / "compare.html").exists()
    with pytest.raises(SystemExit):
        run_all(few, config, out)
    for name in ("cam", "mirrored", "clims"):
        for stage in FINISHED:
            assert tree(out / name / stage) == tree(whole / name / stage)


@pytest.mark.slow
def test_a_clip_is_trained_once_for_those_that_need_one(tmp_path, few):
    content = copy.deepcopy(CONTENT)
    del content["common"]["clip"]
    content["clip"] = {
        "init": "none",
        "architecture": {"patch": 8, "width": 32, "blocks": 3, "heads": 2, "text_width": 16, "text_blocks": 1, "joint": 16},
        "augment": {"long_side": [48, 64], "crop": 48},
        "training": FEW,
    }  # fmt: skip
    content["runs"] = {"clip_es": {"inference": {"attention_blocks": 2}}, "clims": CONTENT["runs"]["clims"]}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert run_all(few, tmp_path / "all.yaml", tmp_path / "one", "--methods", "cam") == 0
    assert not (tmp_path / "one" / "clip").exists()
    assert run_all(few, tmp_path / "all.yaml", tmp_path / "all", "--methods", "clip_es, clims") == 0
    assert (tmp_path / "all" / "clip" / "done.json").exists()
    compared = json.loads((tmp_path / "all" / "compare.json").read_text())
    assert [run["protocol"]["CLIP"] for run in compared["runs"]] == ["clip", "clip"]
