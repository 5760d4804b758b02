"""The command line as users call it: help, single stages, settings in YAML, and one clear error for each kind of bad input."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, wsss
from wsss import lock
from wsss.cli import main
from wsss.data.files import write_mask
from wsss.data.shapes import make_shapes
from wsss.outputs import LOCK
from wsss.weights import WEIGHTS, read_metadata


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; gives its exit status, what it printed, and its errors."""

    def run(*words):
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def ok(run):
    """Runs a command that has to succeed; gives what it printed."""

    def ok(*words):
        status, out, err = run(*words)
        assert status == 0, err[-3000:]
        return out

    return ok


@pytest.fixture
def refused(run):
    """Runs a command that has to end with one clear error; gives its text."""

    def refused(*words):
        status, _, err = run(*words)
        assert status == 2, err[-3000:]
        assert err.count("wsss: error:") == 1
        return err[err.index("wsss: error:") :]

    return refused


def test_unknown_commands_are_answered_with_what_there_is(refused):
    assert "run clamb: no such command. Did you mean run cam?" in refused("run", "clamb")
    assert "dance: no such command. `wsss --help` lists them." in refused("dance")


def test_a_flag_of_the_wrong_type(pictures, tmp_path):
    done = wsss("run", "cam", "--data", pictures, "--out", tmp_path / "o", "--classifier.training.epochs", "many")
    assert done.returncode == 2
    assert (
        done.stderr
        == "wsss: error: --classifier.training.epochs: found 'many'; expected a whole number or null. Change it.\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"classifier: {class_path: canary.X}", "classifier.class_path: found the key `class_path`"),
        (b"classifier: !!python/object/apply:canary.X []", "classifier: found the YAML tag"),
        (b"classifier: {training: {epoch: 3}}", "Did you mean epochs?"),
        (
            b"classifier: {init: none, training: {epochs: null, batch: 4}}",
            "classifier.training: found epochs None and steps None",
        ),
        (b"classifier:\n\tinit: none\n", "in line 2"),
        (b"", "found no settings"),
        ("classifier: {init: none}".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "a zero byte"),
        (b"[" * 100_000, "nested deeper than 50"),
        (None, "a folder"),
    ],
)
def test_a_settings_file_that_is_none(pictures, tmp_path, monkeypatch, capsys, content, message):
    (tmp_path / "canary.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('sprung').touch()\nX = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "settings.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert main(["run", "cam", "--data", str(pictures), "--out", str(tmp_path / "run"), "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("wsss: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "run").exists()


def test_printed_settings_are_settings(pictures, tmp_path):
    words = ("run", "cam", "--data", pictures, "--out", tmp_path / "o", "--preset", "paper", "--print_config")
    printed = wsss(*words).stdout
    settings = yaml.safe_load(printed)
    assert settings["classifier"]["backbone"] == "resnet50"
    assert settings["classifier"]["training"]["momentum"] == 1e-4
    assert settings["segmenter"]["training"]["steps"] == 20_000
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    again = wsss("run", "cam", "--config", path, "--print_config").stdout
    assert yaml.safe_load(again) == settings
    # commands for single stages, or without settings, take what they have of it
    for words in (
        ("predict", "--weights", tmp_path, "--pictures", pictures, "--out", tmp_path / "p"),
        ("report", tmp_path / "o"),
        ("compare", tmp_path / "o"),
        ("export", "model", tmp_path / "o", "--out", tmp_path / "m"),
        ("train", "cam"),
        ("evaluate", "--masks", tmp_path),
    ):
        done = wsss(*words, "--config", path, "--print_config")
        assert done.returncode == 0, (words, done.stderr)
    assert yaml.safe_load(done.stdout)["thresholds"] == settings["scores"]["thresholds"]
    (tmp_path / "plots.yaml").write_text("plots: true\n")  # in a file of its own, it was meant for the command
    done = wsss("predict", "--config", tmp_path / "plots.yaml", "--print_config")
    assert (done.returncode, "plots: no such setting" in done.stderr) == (2, True)


def test_a_setting_of_another_kind_is_named_with_its_kind_at_any_depth():
    done = wsss("segment", "--segmenter", "emanet", "--segmenter.network.atrous_rates", "6,12", "--print_config")
    assert done.returncode == 2
    assert "--segmenter.network.atrous_rates: found a setting of deeplab, while kind is emanet" in done.stderr


def test_arguments_that_are_missing_are_named_as_they_are_given():
    assert "wsss data info: found no DATA; expected" in wsss("data", "info").stderr
    assert "wsss run cam: found no --data, --out; expected" in wsss("run", "cam").stderr


def test_stages_one_by_one(tmp_path, shapes, ok):
    # of a whole run's file each stage takes its section; a section alone is a file too
    run, section = tmp_path / "run.yaml", tmp_path / "section.yaml"
    run.write_text(yaml.safe_dump(TINY))
    section.write_text(yaml.safe_dump(TINY["inference"]))
    base, data = tmp_path / "run", ("--data", shapes)
    ok("train", "cam", *data, "--config", run, "--out", base / "classifier")
    ok("localize", "cam", *data, "--config", section, "--weights", base / "classifier", "--out", base / "cams")
    table = ok("evaluate", *data, "--cams", base / "cams", "--out", base / "cams-scores")
    assert "maps" in table
    refine = ("refine", *data, "--cams", base / "cams", "--refiner.threshold", "0.3", "--refiner.by", "threshold")
    assert ok(*refine, "--out", base).strip() == str(base / "masks")
    ok("evaluate", *data, "--masks", base / "masks", "--out", base / "masks-scores")
    ok("segment", *data, "--config", run, "--masks", base / "masks", "--out", base / "segmenter")
    ok("predict", "--pictures", shapes / "JPEGImages", "--weights", base / "segmenter", "--out", base / "predictions")
    assert len(list((base / "predictions").glob("*.png"))) == 32
    ok("report", base, *data)
    assert (base / "report.html").exists()


def test_predict_leaves_bad_pictures_out_where_it_may(finished, pictures, tmp_path, ok, refused):
    path = pictures / "dog" / "1.jpg"
    path.write_bytes(b"")
    words = ("predict", "--weights", finished / "segmenter", "--pictures", pictures, "--out", tmp_path / "masks")
    assert str(path) in refused(*words)
    shutil.rmtree(tmp_path / "masks")
    ok(*words, "--skip-bad")
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 7


@pytest.mark.slow
def test_two_processes_predict_the_same_files(finished, shapes, tmp_path):
    words = ("--weights", finished, "--pictures", shapes / "JPEGImages", "--overlay", "--json", "--probabilities")
    for processes in (1, 2):
        done = wsss("predict", *words, "--out", tmp_path / str(processes), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"weights: {finished / 'segmenter'}" in done.stderr
    one, two = tree(tmp_path / "1"), tree(tmp_path / "2")
    assert one == two
    count = len(list((shapes / "JPEGImages").iterdir()))
    for suffix in (".png", ".jpg", ".json", ".npz"):
        found = [name for name in one if name.endswith(suffix) and not name.endswith("done.json")]
        assert len(found) == count, suffix


def test_a_run_with_corrected_masks(pictures, tmp_path, tiny, ok, refused):
    write_mask(tmp_path / "corrected" / "cat" / "1.png", np.ones((40, 48), np.uint8))
    words = ("run", "cam", "--data", pictures, "--config", tiny, "--corrected", tmp_path / "corrected")
    ok(*words, "--out", tmp_path / "run")
    assert read_metadata(tmp_path / "run" / "segmenter" / WEIGHTS)["corrected"] == ["cat/1"]
    write_mask(tmp_path / "corrected" / "cat" / "9.png", np.ones((40, 48), np.uint8))
    assert "cat/9.png, which belongs to no picture" in refused(*words, "--out", tmp_path / "other")
    assert not (tmp_path / "other" / "classifier").exists()
    segment = ("segment", "--data", pictures, "--masks", tmp_path / "run" / "masks", "--config", tiny)
    (tmp_path / "corrected" / "cat" / "9.png").unlink()
    more = ("--corrected", tmp_path / "corrected", "--corrected_weight", "2", "--init", tmp_path / "run" / "segmenter")
    ok(*segment, *more, "--out", tmp_path / "further")
    settings = json.loads((tmp_path / "further" / "done.json").read_text())["inputs"]["settings"]
    assert settings["corrected_weight"] == 2
    assert settings["init"]["file"] == WEIGHTS


def test_a_folder_without_true_masks_goes_all_the_way(pictures, tmp_path, tiny, ok):
    ok("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    assert len(list((tmp_path / "run" / "masks").rglob("*.png"))) == 8
    assert not (tmp_path / "run" / "cams-scores").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_info_names_classes_and_bad_files(pictures, run):
    (pictures / "cat" / "notes.jpg").write_text("not a picture")
    status, text, _ = run("data", "info", pictures)
    assert status == 2
    assert "cat 5, dog 4" in text
    assert "notes.jpg: found no picture" in text


def test_bad_pictures_stop_a_run_or_are_left_out_by_name(pictures, tmp_path, tiny, ok, refused):
    cut, text, empty = bad = [pictures / name for name in ("cat/0.jpg", "cat/1.jpg", "dog/1.jpg")]
    cut.write_bytes(cut.read_bytes()[:200])
    text.write_text("hello")
    empty.write_bytes(b"")
    words = ("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    error = refused(*words)
    assert all(str(path) in error for path in bad)
    assert "--skip-bad" in error
    # five pictures are left, fewer than a batch
    error = refused(*words, "--skip-bad")
    assert "5 pictures" in error
    ok(*words, "--skip-bad", "--classifier.training.batch", "4", "--segmenter.training.batch", "4")
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert list(found["bad"]) == ["cat/0.jpg", "cat/1.jpg", "dog/1.jpg"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"{path.parent.name}/{path.name}" in page for path in bad)


def table(pictures, rows, encoding="utf-8", header=("image", "tags")):
    flat = pictures.parent / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted(pictures.rglob("*.jpg"))):
        shutil.copy(path, flat / f"{index}.jpg")
    with (flat / "tags.csv").open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return flat


def test_a_tag_that_is_no_class(pictures, tmp_path, refused):
    flat = table(pictures, [(f"{i}.jpg", "cat") for i in range(7)] + [("7.jpg", "dgo")])
    (flat / "classes.txt").write_text("cat\ndog\n")
    error = refused("run", "cam", "--data", flat, "--out", tmp_path / "run")
    assert "dgo" in error
    assert "dog" in error


def test_a_table_with_missing_columns(pictures, tmp_path, refused):
    error = refused("data", "info", table(pictures, [("0.jpg", "cat")], header=("file", "label")))
    assert "tags.csv" in error
    assert "image" in error


def test_a_table_in_another_encoding(pictures, refused):
    error = refused("data", "info", table(pictures, [("0.jpg", "Käse")], encoding="latin-1"))
    assert "tags.csv" in error
    assert "UTF-8" in error


def test_a_missing_split_file(tmp_path, shapes, refused):
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "ImageSets/Segmentation/train.txt").unlink()
    (data / "ImageSets/Segmentation/val.txt").unlink()
    assert "ImageSets" in refused("run", "cam", "--data", data, "--out", tmp_path / "run")


def test_a_mask_of_another_size_and_an_unknown_label(tmp_path, shapes, tiny, refused):
    data = shutil.copytree(shapes, tmp_path / "data")
    for name, array in (("train_00000", np.zeros((5, 5), np.uint8)), ("train_00001", None)):
        path = data / "SegmentationClass" / f"{name}.png"
        if array is None:
            with Image.open(path) as picture:
                array = np.full_like(np.asarray(picture), 77)
        Image.fromarray(array).save(path)
    error = refused("run", "cam", "--data", data, "--config", tiny, "--out", tmp_path / "run")
    assert "2 bad files" in error
    assert "a mask of 5x5" in error
    assert "label 77" in error


def test_a_cut_off_coco_file(tmp_path, refused):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "train2017").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text('{"images": [{"id": 1, ')
    assert "instances_train2017.json" in refused("data", "info", tmp_path / "coco")


def test_no_such_path(tmp_path, refused):
    assert "no such file or folder" in refused("run", "cam", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")


def test_an_output_folder_with_other_files(pictures, tmp_path, tiny, refused):
    (tmp_path / "run" / "classifier").mkdir(parents=True)
    (tmp_path / "run" / "classifier" / "thesis.tex").write_text("precious")
    error = refused("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    assert "files that were not made by a stage" in error
    assert (tmp_path / "run" / "classifier" / "thesis.tex").read_text() == "precious"


def test_an_output_folder_that_is_a_file(pictures, tmp_path, tiny, refused):
    (tmp_path / "run").write_text("a file")
    error = refused("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    assert "a file in place of a folder" in error


def test_a_full_disk_leaves_nothing_half_written(tmp_path, pictures, tiny, refused):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        error = refused("run", "cam", "--data", pictures, "--config", tiny, "--out", small / "run")
        assert "of free space; expected about" in error
        error = refused("train", "cam", "--data", pictures, "--config", tiny, "--out", small / "classifier")
        assert "a full disk" in error
        assert not list(small.rglob("*.part"))
        assert not (small / "classifier" / "weights.safetensors").exists()
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_read_only_output(tmp_path, pictures, tiny, refused):
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", frozen], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a read-only file system")
    try:
        assert "read-only" in refused("run", "cam", "--data", pictures, "--config", tiny, "--out", frozen / "run")
    finally:
        subprocess.run(["umount", "--lazy", frozen], check=True)


class Trap:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(tmp_path, pictures, tiny, refused):
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    words = ("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    error = refused(*words, "--classifier.init", tmp_path / "evil.pth")
    assert "evil.pth" in error
    np.save(
        tmp_path / "cls_labels.npy", np.array({"cat/0": Trap(tmp_path / "sprung")}, dtype=object), allow_pickle=True
    )
    error = refused("data", "info", pictures, "--tags", tmp_path / "cls_labels.npy")
    assert "cls_labels.npy" in error
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_of_another_architecture(tmp_path, pictures, tiny, refused):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    words = ("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / "run")
    assert "weights of another network" in refused(*words, "--classifier.init", tmp_path / "other.pth")


def test_generated_pictures_again_and_with_other_settings(tmp_path, ok, refused):
    ok("data", "shapes", tmp_path / "s", "--train", "3", "--val", "2", "--size", "64")
    ok("data", "shapes", tmp_path / "s", "--train", "3", "--val", "2", "--size", "64")
    assert "train 3" in refused("data", "shapes", tmp_path / "s", "--train", "4", "--val", "2", "--size", "64")
    assert make_shapes(tmp_path / "s", train=3, val=2, size=64) == tmp_path / "s"


def test_an_overview_takes_the_options_of_a_run(pictures, run, ok, refused):
    (pictures / "masks" / "cat").mkdir(parents=True)
    for index in range(4):
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(pictures / "masks" / "cat" / f"{index}.png")
    status, stops, error = run("data", "info", pictures)
    assert status == 2
    assert "1 reason to stop a run, listed above" in error
    assert "a run stops at:" in stops
    assert "no class in any of 4 masks" in stops
    text = ok("data", "info", pictures, "--mask-values", "255=cat", "--classes", "dog,cat", "--skip-bad")
    assert "2 classes: dog, cat" in text
    assert "mask values are read as 255=cat" in text
    assert "4 of 8 pictures have a true mask: nothing is scored on this split" in text
    assert "--skip-bad leaves out 0 bad pictures" in text
    assert "'cow' as a meaning" in refused("data", "info", pictures, "--mask-values", "255=cow")


def test_an_overview_ends_quietly_when_its_reader_does(pictures):
    command = f'"{sys.executable}" -m wsss data info "{pictures}" | head -1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("folders data set at")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_another_command_in_the_same_folder(pictures, tmp_path, tiny, refused):
    other = subprocess.Popen(["sleep", "100"])
    try:
        with lock.locked(tmp_path / "run"):
            content = json.loads((tmp_path / "run" / LOCK).read_text())
        started = psutil.Process(other.pid).create_time()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK).write_text(json.dumps(content | {"process": other.pid, "started": started}))
        for out in ("run", "run/classifier"):
            error = refused("run", "cam", "--data", pictures, "--config", tiny, "--out", tmp_path / out)
            assert f"(process {other.pid} on " in error
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("words", [["--crf", "irn"], []])
def test_predict_compiles_the_crf_beside_its_beginning(tmp_path, refused, monkeypatch, words, known):
    """Before anything else, and only if it needs it: even a file that turns out to be no network has started it."""
    begun = []
    monkeypatch.setattr("wsss.ops.crf.is_compiled", lambda: known)
    monkeypatch.setattr("wsss.ops.crf.compile_ahead", lambda *, gently: begun.append(gently))
    (tmp_path / "weights").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one.jpg")
    paths = ["--weights", tmp_path / "weights", "--pictures", tmp_path / "one.jpg", "--out", tmp_path / "out"]
    refused("predict", *paths, *words)
    assert begun == ([False] if words and not known else [])
