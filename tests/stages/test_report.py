"""The report page and the table of scores, on run folders whose records the stages' own code wrote."""

import base64
import dataclasses
import html.parser
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from wsss.data.files import read_cams, write_cams, write_mask
from wsss.data.images import Dataset, Images, MaskFile
from wsss.errors import BadInput
from wsss.ops.contour import boundary_matches
from wsss.run import stage
from wsss.stages import evaluate
from wsss.stages.closing import next_commands
from wsss.stages.pages import CONTOUR_COLOURS, contour_uri, contours, with_code
from wsss.stages.report import report, table
from wsss.storage import read_json, write_json
from wsss.weights import WEIGHTS, write_weights

CLASSES = ("bird", "cat", "train & <rail>", "sheep")
NASTY = "sub/<script>alert(\"x\")</script> & 'o' é.v1"
STAGES = [
    "classifier", "cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions", "predictions-scores",
]  # fmt: skip
SCORES = evaluate.ScoreSettings(thresholds=(0.1, 0.3, 0.5, 0.7))


class Page(html.parser.HTMLParser):
    """Elements with their attributes and inner text, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in ("meta", "img", "br"):
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without a start"
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag: str, kind: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, " ".join(" ".join(text).split()))
            for name, attributes, text in self.elements
            if name == tag and (kind is None or kind in (attributes.get("class") or "").split())
        ]

    def section(self, identity: str) -> str:
        return next(text for attributes, text in self.all("section") if attributes.get("id") == identity)


@dataclasses.dataclass(frozen=True)
class Method:
    """Settings of the stand-ins for training and inference."""

    lr: float = 0.1
    scales: tuple[float, ...] = (1.0, 0.5)
    steps: int = 1200


@stage(kind="train", makes="weights", title="CAM")
def train(settings: Method, images: Images, *, out: Path, **inputs: Path) -> dict[str, Any]:
    history = [
        {"step": step, "lr": settings.lr * (1 - step / settings.steps) ** 0.9, "classification": 0.7 / (1 + step / 50)}
        for step in range(settings.steps)
    ]
    write_json(out / "history.json", history)
    write_weights(out / WEIGHTS, {}, {})
    return {"steps": settings.steps, "images": len(images), "final": history[-1]}


@stage(kind="localize", makes="maps", title="CAM")
def localize(settings: Method, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    for index, name in enumerate(images.names):
        truth = images.read_mask(index) if images.masks[index] else np.ones(images.size_hw(index), np.uint8)
        maps = [_blurred(truth == label + 1, truth.shape[0] / 10) for label in images.classes(index)]
        write_cams(out / f"{name}.npz", np.array(images.classes(index)), np.reshape(maps, (-1, *truth.shape)))
    return {"images": len(images)}


def _blurred(mask: np.ndarray, radius: float) -> np.ndarray:
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred) / np.float32(255)


@stage(kind="refine", makes="masks", title="threshold")
def refine(settings: Method, images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    for index, name in enumerate(images.names):
        classes, maps = read_cams(cams / f"{name}.npz")
        mask = np.zeros(images.size_hw(index), np.uint8)
        for label, heat in zip(classes, maps):
            mask[heat > 0.4], mask[(heat > 0.3) & (heat <= 0.4)] = label + 1, 255
        write_mask(out / f"{name}.png", mask)
    return {"images": len(images)}


@stage(kind="predict", makes="predictions", title="segmenter")
def predict(settings: Method, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    for index, name in enumerate(images.names):
        truth = images.read_mask(index)
        moved = np.roll(np.where(truth == 255, 0, truth), (index, 2 * index), (0, 1))
        write_mask(out / f"{name}.png", np.where(moved == 2, 1, moved).astype(np.uint8) if index % 3 == 0 else moved)
    return {"images": len(images)}


def drawn(folder: Path, title: str, names: list[str], size: int, classes: tuple[str, ...], with_masks: bool) -> Images:
    """Pictures of ellipses, and their masks with an ignored outline."""
    rng = np.random.default_rng(len(names))
    labels, paths, masks = np.zeros((len(names), len(classes)), bool), [], []
    for index, name in enumerate(names):
        height, width = (size, size * 4 // 3) if index % 4 else (size * 4 // 3, size)
        ramp = np.linspace(60, 200, width)[None, :, None] + rng.normal(0, 18, (height, width, 3))
        picture, mask = Image.fromarray(ramp.clip(0, 255).astype(np.uint8)), Image.new("L", (width, height))
        for label in rng.choice(len(classes), 1 + index % 2, replace=False):
            x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
            box = (int(x), int(y), int(x + width // 3), int(y + height // 2.5))
            ImageDraw.Draw(picture).ellipse(box, fill=tuple(int(c) for c in (label * 61 % 256, label * 117 % 256, 90)))
            ImageDraw.Draw(mask).ellipse(box, fill=int(label) + 1, outline=255, width=2)
        for kind, what in (("pictures", picture), ("truth", mask)):
            (folder / kind / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
            what.save(folder / kind / f"{name}.png")
        paths.append(folder / "pictures" / f"{name}.png")
        masks.append(MaskFile(folder / "truth" / f"{name}.png") if with_masks else None)
        labels[index] = np.isin(np.arange(1, len(classes) + 1), np.asarray(mask))
    return Images(title, tuple(names), tuple(paths), classes, labels, tuple(masks))


def opened(folder: Path, size: int = 36, with_masks: bool = True, classes: tuple[str, ...] = CLASSES) -> Dataset:
    """A data set of which not all training pictures have true masks."""
    names = [NASTY, *(f"{index:03}" for index in range(29))]
    everything = drawn(folder / "train", "drawn/train", names, size, classes, with_masks)
    seeds = everything.subset(range(20), "drawn/seed")
    whole = dataclasses.replace(everything, masks=(*everything.masks[:20], *[None] * 10))
    # the same names as in train, for other pictures
    val = drawn(folder / "val", "drawn/val", names[:9], size, classes, with_masks)
    splits = {"train": whole, "seed": seeds, "val": val}
    return Dataset("folders", folder, splits, "train", "seed" if with_masks else None, "val", ["seen from above"])


def made(run: Path, data: Dataset) -> Path:
    """A run with everything that the recipe of class activation maps leaves."""
    images, seeds, val = (data.split(name) for name in ("train", "seed", "val"))
    classifier = train(Method(), images, out=run / "classifier")
    cams = localize(Method(), seeds if seeds.has_masks else images, weights=classifier, out=run / "cams")
    masks = refine(Method(), seeds if seeds.has_masks else images, cams=cams, out=run / "masks")
    segmenter = train(Method(lr=0.02, steps=30), images, masks=masks, out=run / "segmenter")
    if seeds.has_masks:
        evaluate.evaluate_cams(SCORES, seeds, cams=cams, out=run / "cams-scores")
        evaluate.evaluate_masks(SCORES, seeds, masks=masks, out=run / "masks-scores")
        predictions = predict(Method(), val, weights=segmenter, out=run / "predictions")
        evaluate.evaluate_masks(SCORES, val, masks=predictions, out=run / "predictions-scores")
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("report")
    data = opened(folder / "drawn & quartered")
    run = made(folder / "run", data)
    bad = {NASTY: "cut off <b>here</b>", "empty.jpg": "an empty file"}
    write_json(run / "data.json", {"overview": {"train": {"pictures": 30}}, "bad": bad})
    return run, data


@pytest.fixture(scope="module")
def text(whole: tuple[Path, Dataset]) -> str:
    return report(*whole).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_page_is_one_file_that_loads_nothing(text: str, page: Page) -> None:
    assert not re.search(r"https?:|url\(|@import", text)
    assert page.tags["link"] == 0
    assert page.tags["script"] == 1
    sources = [
        value for _, attributes, _ in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert sources
    assert all(value and (value.startswith("data:image/") or re.fullmatch(r"#\w+", value)) for value in sources)
    targets = {attributes.get("id") for _, attributes, _ in page.elements}
    assert {value[1:] for value in sources if value and value.startswith("#")} <= targets


def test_names_are_escaped(text: str, page: Page) -> None:
    assert "<script>alert" not in text
    assert "<rail>" not in text
    assert "<b>here" not in text
    names = [inner for _, inner in page.all("span", "name")]
    assert NASTY in names
    assert "2 bad pictures left out" in page.section("data")
    assert f"{NASTY} : cut off <b>here</b> empty.jpg : an empty file" in page.section("data")


def test_scores_and_their_protocols_are_shown(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    scores = page.section("scores")
    for folder, what in (
        ("cams-scores", "maps at the best threshold"),
        ("masks-scores", "pseudo masks"),
        ("predictions-scores", "predictions"),
    ):
        content = read_json(run / folder / "scores.json", "scores")
        figures = (content["scores"]["miou"], content["contour"]["mean_f"], content["scores"]["pixel_accuracy"])
        miou, contour, accuracy = (f"{100 * share:.1f}" for share in figures)
        split, images = content["protocol"]["split"], content["protocol"]["images"]
        assert re.search(rf"{what}[ ().0-9]*{split} ?{images} ?{miou} ?{contour} ?{accuracy}", scores)
    assert scores.count("convention: present") == 3
    assert scores.count("unsure pixels: count as background") == 2
    assert "drawn & quartered" in page.all("h1")[0][1]
    assert page.all("h1")[0][1].startswith("CAM on ")


def test_stages_follow_what_they_were_made_from(page: Page) -> None:
    folders = [inner for attributes, inner in page.all("code") if inner in STAGES]
    assert folders[-len(STAGES) :] == STAGES
    stages = page.section("stages")
    assert "20 pictures of drawn/seed · weights: classifier" in stages
    assert "30 pictures of drawn/train · masks: masks" in stages
    assert re.search(r"lr ?0\.02", stages)


def test_what_to_do_next_and_what_pixel_labels_were_used_for(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    commands = [inner for _, inner in page.all("code") if inner.startswith("wsss ")]
    assert commands == [
        f"wsss predict --weights {run} --pictures NEW_PICTURES --out MASKS --overlay",
        f"wsss review {run}",
        f"wsss export masks {run}/masks --format coco --out {run}-coco",
    ]
    assert "pixel labels used: none" in page.all("header", "top")[0][1]


def test_next_commands_are_for_what_there_is(tmp_path: Path) -> None:
    run = tmp_path / "my $HOME; run"
    assert next_commands(run) == []
    (run / "masks").mkdir(parents=True)
    (run / "masks" / "done.json").touch()
    (run / "tags-review.csv").touch()
    review, export, again = (shlex.split(one.command) for one in next_commands(run))
    assert review == ["wsss", "review", str(run)]
    assert str(run / "masks") in export
    assert again[again.index("--tags") + 1] == str(run / "tags-review.csv")
    opened = {"path": "/data/my cats", "tags": None, "negatives": ["none"], "skip_bad": None, "upright": False}
    write_json(run / "data.json", {"opened": opened, "bad": {}, "doubts": []})
    (run / "settings.yaml").write_text("preset: quick\n")
    again = shlex.split(next_commands(run)[-1].command)
    assert again[3:] == [
        "--config", str(run / "settings.yaml"), "--data", "/data/my cats", "--negative", "none",
        "--tags", str(run / "tags-review.csv"), "--upright", "false", "--out", f"{run}-2",
    ]  # fmt: skip


def test_bars_are_as_long_as_the_scores(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    masks = read_json(run / "masks-scores" / "scores.json", "scores")
    widths = [attributes["style"] for attributes, _ in page.all("span", "bar") if "s1" in (attributes["class"] or "")]
    expected = [masks["scores"]["miou"], *masks["scores"]["iou"], masks["contour"]["mean_f"], *masks["contour"]["f"]]
    assert widths == [f"width:{round(100 * share, 1)}%" for share in expected]


def test_curves(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    best = read_json(run / "cams-scores" / "scores.json", "scores")["protocol"]["threshold"]
    assert f"best at {best:g}" in page.section("threshold")
    assert page.tags["circle"] == 1
    curves = [attributes["points"] or "" for attributes, _ in page.all("polyline")]
    # loss and learning rate of both networks, then the threshold curve; 1200 updates are drawn as 400 means
    assert [len(points.split()) for points in curves] == [400, 400, 30, 30, 4]
    for points in curves:
        x, y = np.array([point.split(",") for point in points.split()], float).T
        assert (np.diff(x) > 0).all()
        assert x.min() >= 78
        assert x.max() <= 626
        assert y.min() >= 12
        assert y.max() <= 220
    loss = np.array([point.split(",") for point in curves[0].split()], float)
    assert (np.diff(loss[:, 1]) >= 0).all(), "the loss falls, so its curve goes down the page"
    assert "each point is the mean of 3" in page.section("training")


def test_galleries_show_what_was_made_of_each_picture(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    per_image = read_json(run / "masks-scores" / "per_image.json", "scores")
    ranking = sorted(per_image, key=lambda name: (per_image[name], name))
    rows = [(attributes, inner) for attributes, inner in page.all("div", "row")]
    names = [inner for _, inner in page.all("span", "name")]
    assert names[:12] == [*ranking[:6], *ranking[-1:-7:-1]]
    assert len(set(names[:16])) == 16
    worst = rows[0][1]
    assert f"pseudo masks {100 * per_image[ranking[0]]:.1f}" in worst
    assert [word for word in ("picture", "true mask", "maps: ", "predictions") if word in worst] == [
        "picture",
        "true mask",
        "maps: ",
    ]
    # val holds other pictures of the same names, of which there are no maps
    last = rows[-1][1]
    assert "predictions" in last
    assert "true mask" in last
    assert "maps" not in last
    assert len(rows) == 16 + 9


def test_contours_of_each_picture_that_has_a_scored_mask(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    pictures = page.section("pictures")
    assert all(name in pictures for name in CONTOUR_COLOURS)
    captions = Counter(inner for _, inner in page.all("figcaption"))
    assert captions["contours of pseudo masks"] == captions["pseudo masks"] == 16
    assert captions["contours of predictions"] == captions["predictions"] == 9
    scores = read_json(run / "masks-scores" / "per_image_contour.json", "scores")
    per_image = read_json(run / "masks-scores" / "per_image.json", "scores")
    worst = min(per_image, key=lambda name: (per_image[name], name))
    assert f"pseudo masks {100 * per_image[worst]:.1f} · F {100 * scores[worst]:.1f}" in page.all("div", "row")[0][1]


def test_contour_pixels_are_drawn_in_their_colours() -> None:
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 10:30] = 2
    truth[30, 10:30] = 255
    mask = truth.copy()
    mask[5:15, 45:55] = 1
    mask[20:30, 10:30] = 255
    outlines = contours(truth, mask, 0.008)
    counts = {name: int(pixels.sum()) for name, pixels in outlines.items()}
    # the tolerance is one pixel here; a pixel of the square's half is still within it
    matched = boundary_matches(truth, mask, 2, 0.008)
    false = boundary_matches(truth, mask, 1, 0.008)
    assert counts == {
        "predicted contour, right": matched.prediction_matched.sum(),
        "true contour, found": matched.truth_matched.sum(),
        "predicted contour, false": matched.prediction_missed.sum() + false.prediction_missed.sum(),
        "true contour, missed": matched.truth_missed.sum(),
    }
    assert min(counts.values()) > 0
    picture = Image.new("RGB", (60, 40), (255, 255, 255))
    uri = contour_uri(picture, outlines, 60_000)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)
    assert drawn.shape == (320, 480, 3)
    for name, pixels in outlines.items():
        top, left = np.argwhere(pixels)[0]
        near = drawn[8 * top + 3 : 8 * top + 5, 8 * left + 3 : 8 * left + 5].reshape(-1, 3)
        if not any(others[top, left] for other, others in outlines.items() if other != name):
            assert np.abs(near - CONTOUR_COLOURS[name]).max() < 40
    tiny = contour_uri(picture, outlines, 3_000)
    assert len(base64.b64decode(tiny.partition(",")[2])) <= 3_000
    assert contours(np.zeros_like(truth), np.zeros_like(truth), 0.008)["true contour, missed"].sum() == 0


# linear RGB as people without the first, second or third kind of cones see it (Machado et al., TVCG 2009, severity 1)
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_contour_colours_are_told_apart_with_colour_blindness(kind: str) -> None:
    greys = [(25, 25, 25), (90, 90, 90)]
    seen = [_lab(BLINDNESS[kind] @ _linear(colour)) for colour in (*CONTOUR_COLOURS.values(), *greys)]
    # CIE76: 2.3 is just noticeable; two greys need not be told apart
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)][:-1]
    assert min(apart) > 25


def _linear(colour: tuple[int, int, int]) -> np.ndarray:
    share = np.array(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear.clip(0, 1) / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_confusion(whole: tuple[Path, Dataset], page: Page) -> None:
    run, _ = whole
    counts = np.array(read_json(run / "predictions-scores" / "scores.json", "scores")["confusion"])
    known = counts[counts.sum(1) > 0]
    shares = known / known.sum(1, keepdims=True)
    cells = [
        attributes["style"] for attributes, _ in page.all("td") if (attributes.get("style") or "").startswith("--v")
    ]
    assert cells[-shares.size :] == [f"--v:{round(share, 3)}" for share in shares.ravel().tolist()]
    wrong = counts * (1 - np.eye(5, dtype=int))
    truth, other = np.unravel_index(wrong.argmax(), wrong.shape)
    labels = ["background", *CLASSES]
    top = [inner for _, inner in page.all("table", "top-list")][-1]
    assert top.replace(" ", "").startswith(f"truepredicted%oftruepixels{labels[truth]}{labels[other]}".replace(" ", ""))


def test_picture_in_both_splits_has_one_row(tmp_path: Path) -> None:
    data = opened(tmp_path / "data")
    data = dataclasses.replace(data, splits={**data.splits, "val": data.splits["seed"]}, val="seed")
    page = Page(report(made(tmp_path / "run", data), data).read_text(encoding="utf-8"))
    rows = [inner for _, inner in page.all("div", "row")]
    assert len(rows) == 16
    assert all("pseudo masks" in row and "predictions" in row for row in rows)


def test_no_true_masks(tmp_path: Path) -> None:
    data = opened(tmp_path / "data", with_masks=False)
    run = made(tmp_path / "run", data)
    page = Page(report(run, data).read_text(encoding="utf-8"))
    notes, _, scores, *_ = (inner for _, inner in page.all("section"))
    assert "seen from above" in notes, "what to know about the data comes first"
    assert "pseudo masks over the picture" in {inner for _, inner in page.all("figcaption")}
    assert "No scores" in scores
    assert len(page.all("div", "row")) == 12
    captions = {inner for _, inner in page.all("figcaption")}
    assert "pseudo masks" in captions
    assert "true mask" not in captions
    assert table(run) == f"{run}: no scores, since there are no true masks to score against"


def test_two_of_a_kind_are_told_apart_and_unfinished_stages_named(tmp_path: Path) -> None:
    data = opened(tmp_path / "data")
    run = made(tmp_path / "run", data)
    seeds = data.split("seed")
    walked = refine(Method(lr=0.3), seeds, cams=run / "cams", out=run / "walks" / "masks")
    evaluate.evaluate_masks(
        dataclasses.replace(SCORES, contour=False), seeds, masks=walked, out=run / "walks" / "scores"
    )
    (run / "again").mkdir()
    write_json(run / "again" / "started.json", {"kind": "train"})
    rows = table(run).splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == [
        "maps at the best threshold (0.3)", "pseudo masks (masks)", "pseudo masks (walks/masks)", "predictions",
        "predictions, drawn/val: mIoU over 4 of 5 labels (cat does not occur in the truth)",
    ]  # fmt: skip
    assert rows[3].split()[-3] == "-"
    page = Page(report(run, data).read_text(encoding="utf-8"))
    assert "Not finished: again" in page.section("stages")
    first = page.all("div", "row")[0][1]
    assert "pseudo masks (masks)" in first
    assert "pseudo masks (walks/masks)" in first


def test_many_labels_are_cut_to_the_most_confused(tmp_path: Path) -> None:
    classes = tuple(f"kind {number}" for number in range(80))
    data = opened(tmp_path / "data", classes=classes)
    run = made(tmp_path / "run", data)
    page = Page(report(run, data).read_text(encoding="utf-8"))
    counts = np.array(read_json(run / "masks-scores" / "scores.json", "scores")["confusion"])
    wrong = counts * (1 - np.eye(81, dtype=int))
    confused = wrong.sum(0) + wrong.sum(1)
    names = page.all("table", "matrix")[1][1]
    shown = [label for label, name in enumerate(["background", *classes]) if re.search(rf"{name}(?!\d)", names)]
    assert len(shown) == min(25, (confused > 0).sum())
    assert confused[shown].min() >= np.delete(confused, shown).max()
    assert f"the other {81 - len(shown)} are not shown" in page.section("confusion")


def test_page_stays_small(tmp_path: Path) -> None:
    """JPEG hardly packs noise: 16 rows of 14 such pictures would be some 15 MB at their usual size."""
    data = drawn(tmp_path / "data", "noise/train", [f"{index:03}" for index in range(16)], 240, CLASSES, True)
    rng = np.random.default_rng(0)
    for index, path in enumerate(data.paths):
        Image.fromarray(rng.integers(0, 256, (*data.size_hw(index), 3), np.uint8)).save(path)
    data = dataclasses.replace(data, labels=np.ones_like(data.labels))
    run = tmp_path / "run"
    classifier = train(Method(steps=10), data, out=run / "classifier")
    cams = [localize(Method(lr=number), data, weights=classifier, out=run / f"cams{number}") for number in range(4)]
    evaluate.evaluate_cams(dataclasses.replace(SCORES, contour=False), data, cams=cams[0], out=run / "scores")
    page = report(run, Dataset("folders", tmp_path / "data", {"train": data}, "train", "train", None))
    assert Page(page.read_text(encoding="utf-8")).tags["figure"] == 16 * 14
    assert 5_000_000 < page.stat().st_size < 10_000_000


def test_table_is_aligned(whole: tuple[Path, Dataset]) -> None:
    run, _ = whole
    *lines, remark = table(run).splitlines()
    assert remark == "predictions, drawn/val: mIoU over 4 of 5 labels (cat does not occur in the truth)"
    assert [line.split("  ")[0] for line in lines] == [
        "what",
        "maps at the best threshold (0.3)",
        "pseudo masks",
        "predictions",
    ]
    ends = [[match.end() for match in re.finditer(r"(?:(?<=  )|^)\S+(?: \S+)*", line)] for line in lines]
    assert all(end[2:] == ends[0][2:] for end in ends)
    alone = table(run / "cams-scores").splitlines()
    assert [line.split() for line in alone] == [line.split() for line in lines[:2]]


def test_wrong_folder_or_data_set_is_refused(whole: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, data = whole
    with pytest.raises(BadInput, match="no such folder"):
        table(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no finished stage"):
        report(tmp_path, data)
    other = opened(tmp_path / "other", size=40)
    before = (run / "report.html").read_bytes() if (run / "report.html").exists() else None
    with pytest.raises(BadInput, match="stages made from other pictures"):
        report(run, other)
    if before is not None:
        assert (run / "report.html").read_bytes() == before


def test_pictures_that_are_gone_from_the_data_set_are_said_so(whole: tuple[Path, Dataset]) -> None:
    run, data = whole
    less = dataclasses.replace(data, splits={"train": data.splits["train"]}, scored_split=None, val=None)
    page = Page(report(run, less).read_text(encoding="utf-8"))
    stages = page.section("stages")
    assert (
        "this page does not show them: cams , cams-scores , masks , masks-scores , predictions , predictions-scores"
        in stages
    )
    assert page.all("div", "row") == []


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium")
    return found


@pytest.mark.whole
def test_browser_shows_it_without_an_error(whole: tuple[Path, Dataset], browser: str, tmp_path: Path) -> None:
    path = report(*whole)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom", path.resolve().as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    dom = Page(done.stdout)
    shown = len(dom.all("figure"))
    assert shown > 115
    assert dom.elements[0][1]["data-pictures"] == f"{shown} of {shown}"


def test_a_page_elsewhere_and_one_that_cannot_be_written(
    whole: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, data = whole
    before = report(run, data).read_bytes()
    assert report(run, data, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"
    monkeypatch.setattr("wsss.storage.os.access", lambda path, mode: mode != os.W_OK)
    caplog.set_level("INFO", "wsss")
    assert report(run, data) == run / "report.html"
    assert "is left unchanged" in caplog.text
    assert (run / "report.html").read_bytes() == before


def test_masks_that_were_corrected_are_named(whole: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, data = whole
    shutil.copytree(run, tmp_path / "run")
    path = next((tmp_path / "run" / "masks").rglob("*.png"))
    with Image.open(path) as picture:
        mask = np.array(picture)
    mask[:4, :4] = 1 - mask[:4, :4].clip(0, 1)
    write_mask(path, mask)
    page = report(tmp_path / "run", data).read_text()
    assert f"masks: 1 file ({path.relative_to(tmp_path / 'run' / 'masks')}) was edited after" in page


def test_backticks_become_code_and_the_rest_is_escaped() -> None:
    assert with_code("map of `a<b` & `c`") == "map of <code>a&lt;b</code> &amp; <code>c</code>"
    assert with_code("one ` alone") == "one ` alone"
