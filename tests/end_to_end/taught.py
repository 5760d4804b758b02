"""What the runs of CLIMS and of QA-CLIMS have in common: settings of seconds, data of every layout, checks of what they made."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.data.conftest import write_coco, write_voc
from tests.end_to_end.conftest import TINY
from wsss import classifier
from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.data.files import read_cams, read_mask
from wsss.weights import WEIGHTS, read_weights

FEW = {"batch": 2, "epochs": None, "steps": 2, "workers": 0, "checkpoint_steps": 1, "seed": 2}
AUGMENT = {"long_side": [48, 64], "crop": 48}
# of a recipe, all but the method itself
AROUND = {
    "baseline": {**TINY["classifier"], "training": {**FEW, "optimizer": "adamw", "lr": 0.003}},
    "inference": {"scales": [1.0, 0.5]},
    "refiner": {
        # a CRF may leave nothing of the maps of networks that have hardly been trained
        "labels": {"by": "threshold"},
        "network": {
            "backbone": "test_resnet",
            "init": "classifier",
            "radius": 4,
            "augment": {"crop": 48},
            "training": {**FEW, "lr": 0.01},
        },
        "walk": {"doublings": 3},
    },
    "segmenter": {**TINY["segmenter"], "training": {**FEW, "accumulate": 1, "lr": 0.001}},
}
SCORES = ("cams-scores", "irnet-walk-scores", "masks-scores", "predictions", "predictions-scores")


# up to the segmenter
STAGES = ("baseline", "classifier", "cams", "irnet-labels", "irnet", "irnet-walk", "masks", "segmenter")


def check_whole(run: Path, data: Path, title: str) -> list[dict[str, float]]:
    """Every stage is there, and the method taught the classifier something; gives the losses of its updates."""
    for name in (data / "ImageSets/Segmentation/train.txt").read_text().split():
        _, maps = read_cams(run / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert read_mask(run / "masks" / f"{name}.png").shape == maps.shape[1:]
    for stage in (*STAGES, *SCORES):
        assert (run / stage / "done.json").exists()
    baseline, taught = (read_weights(run / stage / WEIGHTS)[0] for stage in ("baseline", "classifier"))
    assert baseline.keys() == taught.keys()
    assert not torch.equal(baseline["classifier.weight"], taught["classifier.weight"])
    assert f"{title} on" in (run / "report.html").read_text()
    return json.loads((run / "classifier" / "history.json").read_text())


def write_layout(folder: Path, layout: str, shapes: Path, method: str, words: dict[str, Any]) -> list[str]:
    """Data of one layout; gives the options that name it, and for bare pictures the method's words."""
    if layout != "folder":
        return ["--data", str({"voc": write_voc, "coco": write_coco}[layout](folder / layout))]
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    names = (shapes / "ImageSets/Segmentation/train.txt").read_text().split()[:4]
    for number, name in enumerate(names):
        shutil.copy(shapes / "JPEGImages" / f"{name}.jpg", data / "images" / f"{number}.jpg")
    # the last one has no tag
    tags = ("gnome", "gnome;fox", "fox", "")
    rows = "".join(f"images/{number}.jpg,{tag}\n" for number, tag in enumerate(tags))
    (data / "tags.csv").write_text(f"image,tags\n{rows}")
    (folder / "words.yaml").write_text(yaml.safe_dump(words))
    return ["--data", str(data), "--classifier.words", str(folder / "words.yaml")]


def check_published_weights(folder: Path, method: str) -> None:
    """A published checkpoint gives maps without any training."""
    data = write_voc(folder / "voc")
    state = classifier.CAMNetwork("resnet50", 20).state_dict()
    torch.save(state | {"newly_added.0.weight": state["classifier.weight"]}, folder / f"res50_{method}.pth")
    words = ["--weights", str(folder / f"res50_{method}.pth"), "--data", str(data), "--scales", "[1.0]"]
    assert main(["localize", method, *words, "--out", str(folder / "cams")]) == 0
    classes, maps = read_cams(folder / "cams" / "2007_000032.npz")
    assert classes.tolist() == [0, 14]
    assert maps.shape == (2, 30, 40)


def check_config(folder: Path, method: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run takes every setting of one of the files in `wsss/configs`."""
    config = CONFIGS / f"{name}.yaml"
    words = ["--data", str(folder), "--out", str(folder), "--config", str(config), "--print_config"]
    with pytest.raises(SystemExit):
        main(["run", method, *words])
    printed = _flat(yaml.safe_load(capsys.readouterr().out))
    for key, value in _flat(yaml.safe_load(config.read_text())).items():
        assert printed[key] == value


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {name: item for key, value in content.items() for name, item in _flat(value, f"{prefix}.{key}").items()}
