"""The page on extending: each example is added to a copy of the package, as the page says, and runs."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wsss
from tests.end_to_end.conftest import ENVIRONMENT, TINY
from wsss.data.files import read_mask
from wsss.data.shapes import make_shapes
from wsss.weights import WEIGHTS, read_weights

ROOT, PACKAGE = Path(__file__).parents[1], Path(wsss.__file__).parent
BLOCK = re.compile(r"^```(?:python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NEW_FILE = re.compile(r"`wsss/(\w+/\w+\.py)`")
EXAMPLES = ("methods/lse.py", "refiners/share.py", "segmenters/fcn.py", "data/filelist.py", "formats/areas.py")
# where a member's line goes: before this one
BEFORE = {
    "methods/__init__.py": '    "clip",',
    "refiners/__init__.py": "    | AffinityNetSettings",
    "segmenters/__init__.py": "    | PSPNetSettings",
    "data/open.py": '    ("labelme", find_labelme, read_labelme),',
    "formats/__init__.py": '    "voc-server",',
}
SETTINGS = {
    "baseline": TINY["classifier"] | {"training": TINY["classifier"]["training"] | {"epochs": 1, "workers": 0}},
    "classifier": {"augment": TINY["classifier"]["augment"], "training": {"batch": 4, "steps": 3, "workers": 0}},
    "inference": {"scales": [1.0]},
    "refiner": {"kind": "share", "share": 0.3},
    "segmenter": {
        "kind": "fcn",
        "backbone": "test_resnet",
        "augment": {"crop": 48},
        "training": {"batch": 4, "steps": 3, "workers": 0},
    },
}


def examples() -> dict[str, tuple[str, list[str]]]:
    """From the new file of each section of the page to its content and its registration."""
    found = {}
    for section in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split("\n## "):
        blocks = BLOCK.findall(section)
        if blocks:
            content, registration = blocks
            place = NEW_FILE.search(section)[1]
            found[place] = content, registration.splitlines()
    return found


def registered(source: str, place: str, lines: list[str]) -> str:
    """The source of a registry with the lines of a registration: imports below the others, the member before another one."""
    assert source.count(f"\n{BEFORE[place]}\n") == 1
    for line in lines:
        before = "\nfrom wsss." if line.startswith("from ") else f"\n{BEFORE[place]}\n"
        source = source.replace(before, f"\n{line}{before}", 1)
    return source


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """A folder with a package `wsss` that has all examples; what they leave alone is linked."""
    folder = tmp_path_factory.mktemp("overlay")
    package = folder / "wsss"
    package.mkdir()
    rooms = {place.partition("/")[0] for place in EXAMPLES}
    for path in PACKAGE.iterdir():
        if path.name not in rooms and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for room in rooms:
        (package / room).mkdir()
        for path in (PACKAGE / room).iterdir():
            if path.name != "__pycache__":
                (package / room / path.name).symlink_to(path)
    for place, (content, lines) in examples().items():
        (package / place).write_text(content, encoding="utf-8")
        registry = package / ("data/open.py" if place.startswith("data/") else f"{place.partition('/')[0]}/__init__.py")
        source = registry.read_text(encoding="utf-8")
        registry.unlink()
        registry.write_text(registered(source, registry.relative_to(package).as_posix(), lines), encoding="utf-8")
    return folder


def run_in(overlay: Path, *words: object) -> str:
    """Run `python WORDS` with the examples in the package."""
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(overlay), *sys.path])}
    line = [sys.executable, *(str(word) for word in words)]
    done = subprocess.run(line, env=environment, cwd=overlay, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_page_has_an_example_of_each_kind_of_under_40_lines():
    found = examples()
    assert set(found) == set(EXAMPLES)
    for place, (content, registration) in found.items():
        assert len([line for line in content.splitlines() if line.strip()]) < 40, place
        assert len(registration) == (1 if place.startswith(("methods/", "formats/")) else 2)


def test_help_pages_know_them(overlay):
    code = "import sys; from wsss.cli import main; main(['run', 'lse', '--refiner', 'share', '--help-all'])"
    page = " ".join(run_in(overlay, "-c", code).split())
    for words in ("--classifier.sharpness", "--refiner.share", ",fcn,", "share of the pixels that a class gets"):
        assert words in page


def test_they_run_together(tmp_path, overlay):
    """A layout that the example reads, its method, refiner and segmenter to predictions, and their export."""
    shapes = make_shapes(tmp_path / "shapes", train=8, val=4, size=48)
    data = tmp_path / "data"
    lines = []
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        for number, name in enumerate((shapes / f"ImageSets/Segmentation/{split}.txt").read_text().split()):
            (data / split / f"{name}.jpg").symlink_to(shapes / "JPEGImages" / f"{name}.jpg")
            lines.append(f"{split}/{name}.jpg: {('ball', 'boat, ring', 'star')[number % 3]}\n")
    (data / "filelist.txt").write_text("".join(lines))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    run, out = tmp_path / "run", tmp_path / "areas"
    code = (
        "import json, sys; from wsss.cli import main; sys.exit(max(main(words) for words in json.loads(sys.argv[1])))"
    )
    commands = (
        ("run", "lse", "--data", data, "--allow_outside", "--config", tmp_path / "run.yaml", "--out", run),
        ("export", "masks", run / "masks", "--format", "areas", "--background", "--out", out),
    )
    run_in(overlay, "-c", code, json.dumps([[str(word) for word in words] for words in commands]))
    assert (run / "baseline" / WEIGHTS).exists()
    assert read_weights(run / "classifier" / WEIGHTS)[1]["kind"] == "cam"
    assert read_weights(run / "segmenter" / WEIGHTS)[1]["kind"] == "fcn"
    masks = {path.stem: read_mask(path) for path in (run / "masks").rglob("*.png")}
    assert len(masks) == 8
    shares = [(mask > 0).mean() for mask in masks.values()]
    assert 0.1 < max(shares) < 0.65  # 0.3 for each of one or two classes; classes without a positive cell get nothing
    assert len(list((run / "predictions").rglob("*.png"))) == 4
    page = (run / "report.html").read_text()
    assert "share of each map" in page
    rows = list(csv.DictReader((out / "areas.csv").open()))
    for name, mask in masks.items():
        assert sum(int(row["pixels"]) for row in rows if Path(row["file"]).stem == name) == mask.size
