"""Runs side by side: table, files and page, on run folders whose records the stages' own code wrote."""

import csv
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.stages.test_report import NASTY, SCORES, Method, Page, browser, localize, made, opened, refine, train
from wsss.data.images import Dataset
from wsss.data.shapes import make_shapes
from wsss.errors import BadInput
from wsss.health import Health, Note
from wsss.health.note import HEALTH
from wsss.stages import evaluate
from wsss.stages.check import open_checked, reopen
from wsss.stages.compare import compare, table
from wsss.stages.report import report
from wsss.storage import read_json, write_json

__all__ = ["browser"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """`whole`, `other` with a refinement of its maps, `fewer` scored on fewer pictures, `broken` off before its segmenter."""
    folder = tmp_path_factory.mktemp("compare")
    data = opened(folder / "data")
    seeds = data.split("seed")
    made(folder / "runs" / "whole", data)

    other = folder / "runs" / "other"
    classifier = train(Method(lr=0.3), data.split("train"), out=other / "classifier")
    cams = localize(Method(scales=(1.0,)), seeds, weights=classifier, out=other / "cams")
    again = localize(Method(scales=(0.5,)), seeds, weights=cams, out=other / "spread")
    masks = refine(Method(lr=0.3), seeds, cams=again, out=other / "masks")
    # another mask of one picture, so that the two runs differ in it
    shutil.copy(masks / f"{seeds.names[2]}.png", masks / f"{seeds.names[1]}.png")
    for name in ("cams", "spread"):
        evaluate.evaluate_cams(
            dataclasses.replace(SCORES, thresholds=(0.3,)), seeds, cams=other / name, out=other / f"{name}-scores"
        )
    evaluate.evaluate_masks(SCORES, seeds, masks=masks, out=other / "masks-scores")

    fewer = made(folder / "runs" / "fewer", dataclasses.replace(data, val=None))
    few = seeds.subset(range(7), "drawn/few")
    shutil.rmtree(fewer / "masks-scores")
    evaluate.evaluate_masks(SCORES, few, masks=fewer / "masks", out=fewer / "masks-scores")

    broken = folder / "runs" / "broken"
    shutil.copytree(folder / "runs" / "whole", broken)
    for name in ("segmenter", "predictions", "predictions-scores"):
        shutil.rmtree(broken / name)
    (broken / "segmenter").mkdir()
    write_json(broken / "segmenter" / "started.json", {"kind": "train"})
    return folder / "runs", data


NAMES = ("whole", "other", "fewer", "broken")


@pytest.fixture(scope="module")
def compared(runs: tuple[Path, Dataset]) -> tuple[Path, str]:
    folder, data = runs
    comparison = compare([folder / name for name in NAMES], folder.parent / "out", data)
    return folder.parent / "out", table(comparison)


def scores(runs: tuple[Path, Dataset], run: str, stage: str) -> tuple[float, float]:
    content = read_json(runs[0] / run / f"{stage}-scores" / "scores.json", "scores")
    return content["scores"]["miou"], content["contour"]["mean_f"]


def test_table_has_the_scores_of_each_run(runs: tuple[Path, Dataset], compared: tuple[Path, str]) -> None:
    lines = compared[1].splitlines()
    assert re.split(r"  +", lines[0])[2:6] == ["maps: mIoU", "maps: F", "refined maps: mIoU", "refined maps: F"]
    rows = {line.split()[0]: line for line in lines[1:5]}
    expected = [
        f"{100 * value:.1f}" for stage in ("cams", "masks", "predictions") for value in scores(runs, "whole", stage)
    ]
    assert rows["whole"].split()[2:8] == expected
    refined = [f"{100 * value:.1f}" for stage in ("cams", "spread", "masks") for value in scores(runs, "other", stage)]
    assert rows["other"].split()[2:8] == refined
    # cells of what is not there are empty, those that must not be compared are marked
    assert rows["broken"].split()[2:6] == expected[:4]
    few = [f"{100 * value:.1f}*" for value in scores(runs, "fewer", "masks")]
    assert rows["fewer"].split()[4:6] == few
    assert (
        "fewer: pseudo masks not comparable: scored on drawn/few, 7 pictures instead of drawn/seed, 20 pictures"
        in lines[-2]
    )
    assert "broken: unfinished: segmenter" in lines[-1]


def test_what_differs_is_read_from_the_records(compared: tuple[Path, str]) -> None:
    lines = {line.split("  ")[0]: re.split(r"  +", line)[1:] for line in compared[1].splitlines()}
    assert lines["what differs"] == list(NAMES)
    assert lines["threshold of maps"] == ["threshold 0.3, best of 4", "threshold 0.3, given"] + 2 * [
        "threshold 0.3, best of 4"
    ]
    assert "refined maps scored on" not in lines, "one run alone has it"
    assert lines["classifier.lr"] == ["0.1", "0.3", "0.1", "0.1"]
    assert lines["cams.scales"] == ["1.0+0.5", "1.0", "1.0+0.5", "1.0+0.5"]
    assert "classifier.steps" not in lines, "it is the same in all"


def test_files_hold_the_same(runs: tuple[Path, Dataset], compared: tuple[Path, str]) -> None:
    out, _ = compared
    with (out / "compare.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == [name for name in NAMES for _ in range(4)]
    content = {run["name"]: run for run in read_json(out / "compare.json", "a comparison")["runs"]}
    for name, kind, stage in (
        ("whole", "maps", "cams"),
        ("other", "refined maps", "spread"),
        ("fewer", "pseudo masks", "masks"),
    ):
        row = next(row for row in rows if (row["run"], row["what"]) == (name, kind))
        score = content[name]["scores"][kind]
        assert (
            (float(row["miou"]), float(row["contour_f"]))
            == (score["miou"], score["contour_f"])
            == scores(runs, name, stage)
        )
        assert row["comparable"] == str(score["comparable"]) == str(name != "fewer")
    empty = next(row for row in rows if (row["run"], row["what"]) == ("broken", "predictions"))
    assert (empty["miou"], empty["comparable"], empty["status"]) == ("", "", "unfinished: segmenter")
    assert "predictions" not in content["broken"]["scores"]
    assert content["whole"]["protocol"]["predictions scored on"] == "drawn/val, 9 pictures"
    assert content["whole"]["seconds"] == pytest.approx(sum(content["whole"]["seconds of stages"].values()), abs=0.01)


def test_page_shows_the_same_pictures_of_each_run(runs: tuple[Path, Dataset], compared: tuple[Path, str]) -> None:
    text = (compared[0] / "compare.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    page = Page(text)
    assert "4 runs compared" in page.all("h1")[0][1]
    section = page.section("pictures")
    assert "predictions on drawn/val" in section
    assert "pseudo masks on drawn/seed" in section
    rows = [inner for _, inner in page.all("div", "row")]
    masks = [row for row in rows if "whole" in row and "other" in row]
    assert len(masks) == 1 + 6
    assert masks[0].split()[0] == runs[1].split("seed").names[1]
    per_image = {
        run: read_json(runs[0] / run / "masks-scores" / "per_image.json", "scores") for run in ("whole", "other")
    }
    for row in masks:
        name = row.split(" picture true mask")[0].split()[0] if NASTY not in row else NASTY
        for run, reached in per_image.items():
            assert f"{run} {100 * reached[name]:.1f}" in row
        assert "fewer" not in row, "it was scored on other pictures"
    best = [f"{100 * value:.1f}" for value in scores(runs, "whole", "masks")]
    assert [inner for _, inner in page.all("strong")] == 2 * best, "of `whole` and of its copy"
    warnings = [inner for _, inner in page.all("p", "warn")]
    assert [text.split(":")[0] for text in warnings] == ["whole, fewer", "fewer", "broken"]


def test_without_the_data_set_the_page_says_so(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    compare([runs[0] / "whole"], tmp_path)
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "give it with --data" in page.section("pictures")
    assert page.all("div", "row") == []
    assert "1 run compared" in page.all("h1")[0][1]


def test_tags_are_no_other_pictures(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, data = runs
    seeds = data.split("seed")
    others = dataclasses.replace(seeds, labels=np.ones_like(seeds.labels))
    shutil.copytree(folder / "whole" / "masks", tmp_path / "tagged" / "masks")
    evaluate.evaluate_masks(
        SCORES, others, masks=tmp_path / "tagged" / "masks", out=tmp_path / "tagged" / "masks-scores"
    )
    comparison = compare([folder / "whole", tmp_path / "tagged"], tmp_path / "out", data)
    assert comparison.not_comparable == {}
    smaller = dataclasses.replace(SCORES, convention="icam", contour_tolerance=0.02)
    shutil.copytree(folder / "whole" / "masks", tmp_path / "icam" / "masks")
    evaluate.evaluate_masks(smaller, seeds, masks=tmp_path / "icam" / "masks", out=tmp_path / "icam" / "masks-scores")
    comparison = compare([folder / "whole", tmp_path / "tagged", tmp_path / "icam"], tmp_path / "out", data)
    why = "mean `icam` instead of `present`; contour tolerance 0.02 instead of 0.008"
    assert comparison.not_comparable == {("icam", "pseudo masks"): why}


def test_a_run_that_scored_more_is_compared_on_the_pictures_of_the_others(
    runs: tuple[Path, Dataset], tmp_path: Path
) -> None:
    folder, data = runs
    shutil.copytree(folder / "whole", tmp_path / "both")
    few = data.split("seed").subset(range(5), "drawn/five")
    evaluate.evaluate_masks(SCORES, few, masks=tmp_path / "both" / "masks", out=tmp_path / "both" / "zz-scores")
    comparison = compare([tmp_path / "both", folder / "whole"], tmp_path / "out", data)
    assert comparison.not_comparable == {}
    assert [run.scores["pseudo masks"].images for run in comparison.runs] == [20, 20]
    assert [score.images for score in comparison.runs[0].other_scores] == [5]
    assert "drawn/five" in Page((tmp_path / "out" / "compare.html").read_text(encoding="utf-8")).section("scores")


def test_what_run_all_left_is_compared_with_its_failures(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, data = runs
    shutil.copytree(folder / "whole", tmp_path / "all" / "cam")
    write_json(tmp_path / "all" / "cam" / "data.json", {"bad": {}})
    write_json(tmp_path / "all" / "clims" / "failed.json", {"error": "CLIP: found no such file"})
    write_json(tmp_path / "all" / "vwl" / "data.json", {"bad": {}})
    write_json(tmp_path / "all" / "runs.json", {"cam": "cam", "clims": "clims", "vwl": "vwl"})
    comparison = compare([tmp_path / "all"], tmp_path / "all", data)
    assert [run.status for run in comparison.runs] == ["unfinished", "failed", "unfinished"]
    assert [run.method for run in comparison.runs] == ["CAM", "clims", "vwl"]
    assert "clims: failed: CLIP: found no such file" in table(comparison)
    write_json(tmp_path / "all" / "cam" / "run.json", {"method": "CAM", "finished": True})
    assert compare([tmp_path / "all"], tmp_path / "all", data).runs[0].status == "finished"


def test_the_data_set_is_opened_as_it_was_for_the_run(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", train=4, val=3, size=48)
    names = (tmp_path / "shapes" / "classes.txt").read_text().split()
    pictures = [path.stem for path in (tmp_path / "shapes" / "JPEGImages").iterdir()]
    rows = "".join(f"{name},{names[0]}\n" for name in pictures)
    (tmp_path / "tags.csv").write_text(f"image,tags\n{rows}")
    (tmp_path / "shapes" / "JPEGImages" / "val_00001.jpg").write_bytes(b"")
    options = {"tags": tmp_path / "tags.csv", "train": "val", "val": "train"}
    data = open_checked(tmp_path / "shapes", skip_bad=True, remember=tmp_path / "run", **options)
    again = reopen(tmp_path / "run")
    assert again is not None
    assert {name: images.fingerprint() for name, images in again.splits.items()} == {
        name: images.fingerprint() for name, images in data.splits.items()
    }
    assert (again.train, again.val, len(again.split("val"))) == ("val", "train", 2)
    assert reopen(tmp_path) is None


def test_runs_on_other_classes_are_marked_even_alone_in_a_column(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    few = opened(tmp_path / "data", classes=("bird", "cat"))
    cams = localize(
        Method(), few.split("seed"), weights=runs[0] / "whole" / "classifier", out=tmp_path / "run" / "cams"
    )
    spread = localize(Method(lr=0.2), few.split("seed"), weights=cams, out=tmp_path / "run" / "spread")
    evaluate.evaluate_cams(SCORES, few.split("seed"), cams=spread, out=tmp_path / "run" / "scores")
    comparison = compare([tmp_path / "run", runs[0] / "whole", runs[0] / "broken"], tmp_path / "out")
    assert comparison.not_comparable == {("run", "refined maps"): "other classes (bird, cat) in drawn/seed"}


def test_runs_of_one_name_are_told_apart(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    for place in ("a", "b"):
        shutil.copytree(runs[0] / "broken", tmp_path / place / "cam")
    comparison = compare([tmp_path / "a" / "cam", tmp_path / "b" / "cam"], tmp_path / "out")
    assert [run.name for run in comparison.runs] == ["a/cam", "b/cam"]


def test_health_notes_are_in_the_report_and_the_remarks(runs: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, data = runs
    shutil.copytree(folder / "fewer", tmp_path / "noted")
    noted = Health({}, [Note("flat-maps", "All is <flat>.", "Bad.", "Train longer.")])
    write_json(tmp_path / "noted" / "cams-health" / HEALTH, noted.plain())
    comparison = compare([tmp_path / "noted", folder / "whole"], tmp_path / "out", data)
    assert "noted: health notes: All is <flat>." in table(comparison)
    (one, other) = read_json(tmp_path / "out" / "compare.json", "a comparison")["runs"]
    assert [note["kind"] for note in one["health"]] == ["flat-maps"]
    assert other["health"] == []
    text = report(tmp_path / "noted", data).read_text(encoding="utf-8")
    assert "<strong>All is &lt;flat&gt;.</strong> Bad.<br>Train longer." in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        compare([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(BadInput, match="no finished stage"):
        compare([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.whole
def test_browser_shows_it_without_an_error(compared: tuple[Path, str], browser: str, tmp_path: Path) -> None:
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom",
        (compared[0] / "compare.html").resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    dom = Page(done.stdout)
    shown = len(dom.all("figure"))
    assert shown > 40
    assert dom.elements[0][1]["data-pictures"] == f"{shown} of {shown}"
