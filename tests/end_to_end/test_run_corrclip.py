"""`wsss regions`, `wsss localize corrclip`, `wsss run corrclip`: with the demo's CLIP, which also compares patches."""

import numpy as np
import pytest
import yaml

from tests.end_to_end.conftest import TINY, ok, wsss
from tests.methods.taught import write_clip
from wsss.configs import CONFIGS
from wsss.data.files import read_cams, read_mask
from wsss.data.open import open_dataset
from wsss.run import read_record

CLIP = CONFIGS / "demo_clip"
NETWORKS = ("--clip", CLIP, "--dino", "none", "--words", CLIP / "words.yaml", "--level", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes):
    """A run with the regions of similar colours; its mode refiner is the published correction."""
    folder = tmp_path_factory.mktemp("corrclip")
    content = {
        "proposer": {"kind": "tree", "coarseness": [60.0]},
        "inference": {"clip": str(CLIP), "dino": "none", "words": str(CLIP / "words.yaml"), "level": 2},
        "refiner": {"kind": "regions", "mode": {"level": 2}},
        "segmenter": TINY["segmenter"],
    }
    (folder / "corrclip.yaml").write_text(yaml.safe_dump(content))
    ok("run", "corrclip", "--data", shapes, "--config", folder / "corrclip.yaml", "--out", folder / "run")
    return folder / "run"


def test_every_stage_is_there(run, shapes):
    images = open_dataset(shapes).split("train")
    differ = 0
    for index, name in enumerate(images.names):
        classes, maps = read_cams(run / "cams" / f"{name}.npz")
        assert classes.tolist() == images.classes(index)
        assert 0 <= maps.min() <= maps.max() <= 1
        labels = np.concatenate([[0], classes + 1])
        before = labels[np.concatenate([np.full_like(maps[:1], 0.5), maps]).argmax(0)]
        np.testing.assert_array_equal(read_mask(run / "masks-uncorrected" / f"{name}.png"), before)
        differ += (read_mask(run / "masks" / f"{name}.png") != before).any()
    assert differ > 0
    # the refiner has taken the regions of the maps
    assert sorted(path.name for path in run.glob("regions*")) == ["regions"]
    used = read_record(run / "cams")["inputs"]["inputs"]["regions"]
    assert used == read_record(run / "masks")["inputs"]["regions"]
    assert "CorrCLIP on" in (run / "report.html").read_text()


def test_the_stage_alone_makes_the_same_maps(tmp_path, run, shapes):
    words = ("localize", "corrclip", "--data", shapes, *NETWORKS, "--regions", run / "regions")
    ok(*words, "--out", tmp_path / "cams")
    for path in (run / "cams").glob("*.npz"):
        assert (tmp_path / "cams" / path.name).read_bytes() == path.read_bytes()


def test_words_alone(tmp_path, run, shapes):
    words = ("localize", "corrclip", "--data", shapes, *NETWORKS, "--regions", run / "regions")
    ok(*words, "--words_only", "true", "--threshold", "0.2", "--short_side", "56", "--out", tmp_path / "cams")
    images = open_dataset(shapes).split("train")
    found = [read_cams(tmp_path / "cams" / f"{name}.npz") for name in images.names]
    assert {int(cls) for classes, _ in found for cls in classes} > {0}
    assert any(classes.tolist() != images.classes(index) for index, (classes, _) in enumerate(found))
    # a class without a pixel has no map
    assert all((maps.max((1, 2)) >= 0.5).all() for _, maps in found)


def test_what_cannot_work_is_one_line(tmp_path, run, shapes, squares):
    small = write_clip(tmp_path / "small", squares)
    localize = ("localize", "corrclip", "--data", shapes, *NETWORKS)
    regions = ("--regions", run / "regions")
    at_run = (
        "run",
        "corrclip",
        "--data",
        shapes,
        "--inference.clip",
        CLIP,
        "--inference.dino",
        "clip",
        "--segmenter.init",
        "none",
    )
    for words, message in (
        (localize, "--regions: found none"),
        ((*localize, "--regions", tmp_path / "none"), "none: found no such folder"),
        ((*localize, *regions, "--clip", small), "found 2 blocks; expected at least 3"),
        ((*localize, *regions, "--dino", tmp_path / "missing"), "missing: found no such file or folder"),
        ((*localize, *regions, "--backgrounds", "false"), "inference.backgrounds: found false"),
        ((*at_run, "--proposer", "tree", "--refiner.proposer", "sam"), "refiner.proposer: found Segment Anything"),
        ((*at_run, "--inference.regions", run / "regions", "--both_splits", "true"), "both_splits: found true"),
    ):
        done = wsss(*words, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
