"""The checks as stages: what they write, and what they are given by networks."""

import csv
import dataclasses
import json
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.classifier import CAMLocalizer, CAMNetwork, at_scales
from wsss.data.files import write_cams, write_mask
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.health import notes, stages
from wsss.health.note import FOLDERS, read_health
from wsss.health.suspects import SUSPECTS, Suspect, read_suspects
from wsss.methods.cam import CAMInference
from wsss.methods.icam import ICAMInference, ICAMLocalizer
from wsss.networks.seam import SEAMNetwork
from wsss.refiners.crf import MaskSettings, refine
from wsss.stages.localize import Describer

RED, BLUE = (220, 40, 40), (40, 60, 220)


@pytest.fixture
def coloured(tmp_path) -> Images:
    """Red and blue pictures; the first red one is tagged blue."""
    pictures = [np.full((20, 24, 3), RED if index % 2 else BLUE, np.uint8) for index in range(40)]
    labels = np.array([[index % 2 == 1, index % 2 == 0] for index in range(40)])
    labels[1] = [False, True]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture + np.uint8(index % 5)).save(tmp_path / f"{index:02}.png")
    names = tuple(f"{index:02}" for index in range(40))
    paths = tuple(tmp_path / f"{name}.png" for name in names)
    return Images("coloured", names, paths, ("red", "blue"), labels, (None,) * 40)


class MeanColour:
    """A localizer that describes a picture by its mean colour."""

    def describe(self, image):
        return image.mean((0, 1)).astype(np.float32)


class Refusing:
    """A localizer that accepts no picture."""

    def describe(self, image):
        raise BadInput("the picture", "too small", "a patch", "Leave it out.")


@dataclasses.dataclass(frozen=True)
class Method:
    """Settings of a localizer."""

    title: ClassVar[str] = "Mean colour"
    kind: Literal["colour", "refusing", "nothing"] = "colour"

    def localizer(self, images):
        return {"colour": MeanColour, "refusing": Refusing, "nothing": object}[self.kind]()


def test_wrong_tags_are_listed_in_the_run(coloured, tmp_path):
    data = Dataset("tags", tmp_path, {"train": coloured}, "train", None, None, [])
    run = tmp_path / "run"
    checked = stages.check_tags(Method(), coloured, out=run / "classifier-health")
    assert [(one.image, one.tag, one.present) for one in read_suspects(checked)[:2]] == [
        ("01", "red", False),
        ("01", "blue", True),
    ]
    stages.offer_review(run, checked, data, None)
    table = run / stages.REVIEW
    first = next(csv.DictReader(table.open(encoding="utf-8")))
    assert (first["image"], first["tags"], first["suggested"]) == ("01", "blue", "red")
    # what a person corrected is kept
    table.write_text("image,tags\n01,red\n", encoding="utf-8")
    stages.offer_review(run, checked, data, None)
    assert table.read_text(encoding="utf-8") == "image,tags\n01,red\n"


def test_a_later_check_adds_to_a_table_that_nobody_corrected(coloured, tmp_path):
    data = Dataset("tags", tmp_path, {"train": coloured}, "train", None, None, [])
    first, second, run = (tmp_path / name for name in ("first", "second", "run"))
    run.mkdir()
    for folder, found in ((first, {"03": 0.7, "05": 0.6}), (second, {"04": 0.8, "05": 0.9})):
        folder.mkdir()
        suspects = [dataclasses.asdict(Suspect(name, "red", True, score)) for name, score in found.items()]
        (folder / SUSPECTS).write_text(json.dumps(suspects), encoding="utf-8")
    table = run / stages.REVIEW

    def listed():
        rows = csv.DictReader(table.open(encoding="utf-8"))
        return [(row["image"], row["score"]) for row in rows if row["suspicious"]]

    stages.offer_review(run, first, data, None)
    assert listed() == [("03", "0.700"), ("05", "0.600")]
    stages.offer_review(run, second, data, None, earlier=first)
    assert listed() == [("05", "0.900"), ("04", "0.800"), ("03", "0.700")]
    # a run that is started again comes past both checks
    stages.offer_review(run, first, data, None)
    stages.offer_review(run, second, data, None, earlier=first)
    assert listed() == [("05", "0.900"), ("04", "0.800"), ("03", "0.700")]
    # a table of the first check that was corrected is kept
    table.unlink()
    stages.offer_review(run, first, data, None)
    corrected = table.read_text(encoding="utf-8").replace("red", "blue", 1)
    table.write_text(corrected, encoding="utf-8")
    stages.offer_review(run, second, data, None, earlier=first)
    assert table.read_text(encoding="utf-8") == corrected


def test_a_method_that_describes_nothing_says_so(coloured, tmp_path):
    checked = stages.check_tags(Method("nothing"), coloured, out=tmp_path / "run" / "classifier-health")
    health = read_health(checked)
    assert health is not None
    assert health.measured["checked"] == "no: Mean colour does not describe pictures"
    assert read_suspects(checked) == []


def test_an_error_names_the_picture(coloured, tmp_path):
    with pytest.raises(BadInput, match=r"00\.png"):
        stages.check_tags(Method("refusing"), coloured, out=tmp_path / "run" / "classifier-health")


def test_notes_of_maps_and_masks(coloured, tmp_path):
    run = tmp_path / "run"
    for index, name in enumerate(coloured.names):
        classes = np.array(coloured.classes(index))
        write_cams(tmp_path / "maps" / f"{name}.npz", classes, np.full((1, 20, 24), 0.9, np.float32))
        write_mask(tmp_path / "given" / f"{name}.png", np.zeros((20, 24), np.uint8))
    stages.check_data(coloured, out=run / FOLDERS[0])
    stages.check_maps(coloured, cams=tmp_path / "maps", out=run / FOLDERS[2])
    settings = MaskSettings(by="threshold", threshold=0.25)
    masks = refine(settings, coloured, cams=tmp_path / "maps", out=run / "masks")
    stages.check_masks(coloured, masks=masks, out=run / FOLDERS[3])
    found = notes(run)
    assert [note.kind for note in found] == ["flat-maps", "one-hump", "masks-cover-everything"]
    assert "(0.25 was used)" in found[2].do


@pytest.mark.parametrize(
    "localizer",
    [
        lambda: CAMLocalizer(CAMNetwork("test_resnet", 2).eval(), CAMInference()),
        lambda: ICAMLocalizer(SEAMNetwork(2, "test_resnet").eval(), ICAMInference(), "icam"),
    ],
    ids=["cam", "icam"],
)
def test_a_picture_is_described_by_its_highest_features(localizer):
    torch.manual_seed(0)
    made = localizer()
    assert isinstance(made, Describer)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    with torch.no_grad():
        maps = made.network.body(at_scales(image, (1.0,))[0])[-2]
    np.testing.assert_allclose(made.describe(image), maps[0].flatten(1).max(1).values.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("count", "doubted"), [(2, False), (39, True)])
def test_many_suspicious_tags_are_put_down_to_the_classifier(coloured, tmp_path, caplog, count, doubted):
    data = Dataset("tags", tmp_path, {"train": coloured}, "train", None, None, [])
    found = [dataclasses.asdict(Suspect(name, "red", True, 0.9)) for name in coloured.names[:count]]
    (tmp_path / "checked").mkdir()
    (tmp_path / "checked" / SUSPECTS).write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "run").mkdir()
    with caplog.at_level("INFO", logger="wsss"):
        stages.offer_review(tmp_path / "run", tmp_path / "checked", data, None)
    assert f"{count} tags" in caplog.text
    assert ("has not learned enough" in caplog.text) == doubted
