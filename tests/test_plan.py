"""The plan of a run: it names the stages with their durations, follows sizes and numbers, and refuses a disk that is too small."""

import collections
import dataclasses
import shutil

import numpy as np
import pytest
from transformers import Dinov2Config, Dinov2Model

from tests.test_presets import leaves
from wsss import plan, recipe
from wsss.data.open import open_dataset
from wsss.data.shapes import make_shapes
from wsss.errors import BadInput
from wsss.methods import method
from wsss.refiners.crf import CRFSettings, MaskSettings
from wsss.refiners.irnet import IRNetSettings
from wsss.refiners.regions import RegionsSettings
from wsss.registry import uses_crf
from wsss.segmenters.tokens import TokenCache, ViewSettings
from wsss.stages.tokens import cache_tokens

SMALL = {
    "classifier": {"backbone": "test_resnet", "init": "none"},
    "segmenter": {"network": {"backbone": "test_resnet"}},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return open_dataset(make_shapes(tmp_path_factory.mktemp("plan") / "shapes", train=6, val=3, size=48))


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    """Costs of all networks, instead of measured ones; the dense CRF is compiled."""
    monkeypatch.setattr(plan, "measured", lambda *network: plan.Cost(2e-6, 100.0, 4e6))
    monkeypatch.setattr(plan.crf, "is_compiled", lambda: True)


def planned(data, **more):
    cam = method("cam")
    settings = recipe.preset_settings(cam, "quick", SMALL | more)
    return plan.plan(recipe.planned_stages(cam, settings, data), settings, data)


def test_every_stage_of_a_trained_method_has_a_duration(shapes):
    made = planned(shapes)
    assert [stage.folder for stage in made.stages] == [
        "classifier", "classifier-health", "cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions", "predictions-scores"
    ]  # fmt: skip
    assert all(stage.seconds is not None and stage.seconds >= 1 for stage in made.stages)


def test_what_takes_longer_is_planned_longer(shapes):
    def seconds(**training):
        many = {**SMALL["classifier"], "training": {"epochs": None, **training}}
        return next(stage.seconds for stage in planned(shapes, classifier=many).stages if stage.folder == "classifier")

    assert seconds(steps=400) == pytest.approx(4 * seconds(steps=100))
    assert seconds(steps=400, accumulate=2) == pytest.approx(2 * seconds(steps=400))
    bigger = planned(shapes, classifier={**SMALL["classifier"], "training": {"batch": 64}})
    assert bigger.memory > planned(shapes).memory


@pytest.mark.parametrize("source", ["classifier", "folder"])
def test_tokens_and_their_head_are_planned(shapes, tmp_path, source):
    """The cache has the size on the disk that is planned for it; a network of the run, or one that is there already."""
    features = {"layers": 1, "enlarge": 1}
    if source == "folder":
        config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, patch_size=8, image_size=32)
        Dinov2Model(config).save_pretrained(tmp_path / "dino")
        features["source"] = str(tmp_path / "dino")

    def made(**views):
        return planned(shapes, segmenter={"kind": "frozen", "features": features, "crop": 32, "views": views})

    with_flip, without = made(flip=True), made(flip=False)
    assert [stage.folder for stage in with_flip.stages if stage.seconds is None] == []
    folders = [stage.folder for stage in with_flip.stages]
    assert folders[folders.index("tokens") + 1] == "segmenter"
    if source == "folder":
        head = recipe.preset_settings(method("cam"), "quick", {"segmenter": {"kind": "frozen", "features": features}})
        tokens = ViewSettings(flip=False)
        images = shapes.split(shapes.train)
        cached = cache_tokens(
            dataclasses.replace(head.segmenter, views=tokens).of_tokens, images, out=tmp_path / "tokens"
        )
        # the pictures of one dataset differ a little in size
        assert with_flip.disk - without.disk == pytest.approx(TokenCache(cached).index.size, rel=0.2)


@pytest.mark.parametrize("name", ["clip_es", "corrclip", "prompts"])
def test_a_head_behind_a_method_without_a_classifier_is_planned(shapes, tmp_path, name):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, patch_size=8, image_size=32)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    features = {"source": str(tmp_path / "dino"), "layers": 1, "enlarge": 1}
    head = {"segmenter": {"kind": "frozen", "features": features, "crop": 32}}
    settings = recipe.preset_settings(method(name), "quick", head)
    made = plan.plan(recipe.planned_stages(method(name), settings, shapes), settings, shapes)
    durations = {stage.folder: stage.seconds for stage in made.stages}
    assert durations["tokens"] is not None
    assert durations["segmenter"] is not None


@pytest.mark.parametrize(("by", "more"), [("crf", 40), ("threshold", 0)])
def test_compiling_is_planned_once(shapes, monkeypatch, by, more):
    def masks():
        return next(one.seconds for one in planned(shapes, refiner={"by": by}).stages if one.folder == "masks")

    before = masks()
    assert not planned(shapes, refiner={"by": by}).compiles
    monkeypatch.setattr(plan.crf, "is_compiled", lambda: False)
    assert masks() - before == pytest.approx(more, abs=1)
    assert planned(shapes, refiner={"by": by}).compiles == (by == "crf")


def test_what_cannot_be_estimated_is_marked(shapes):
    """The maps of a method without a network of its own."""
    clip_es = method("clip_es")
    settings = recipe.preset_settings(clip_es, "quick", {"segmenter": SMALL["segmenter"]})
    made = plan.plan(recipe.planned_stages(clip_es, settings, shapes), settings, shapes)
    assert [stage.folder for stage in made.stages if stage.seconds is None] == ["classifier-health", "cams"]
    assert "at least" in made.lines(shapes.root)[0]


def test_a_disk_that_is_too_small_is_refused(shapes, tmp_path, monkeypatch):
    made = planned(shapes)
    made.check_disk(tmp_path)
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, int(made.disk / 3)))
    with pytest.raises(BadInput, match="of free space"):
        made.check_disk(tmp_path / "new" / "run")


def test_durations_read_naturally():
    assert [plan.duration(seconds) for seconds in (1, 89, 90, 3600, 12000)] == [
        "1 s",
        "89 s",
        "2 min",
        "60 min",
        "3 h 20 min",
    ]


def test_presets_for_programs_are_those_of_the_command_line(shapes):
    made = recipe.preset_settings(method("cam"), "quick", SMALL)
    quick = dict(leaves(recipe.presets.settings("quick", "cam", SMALL)))
    values = dataclasses.asdict(made)
    for keys, value in quick.items():
        found = values
        for key in keys:
            found = found[key]
        if keys[-1] != "backbone":
            assert np.array_equal(found, value), keys
    assert made.classifier.backbone == made.segmenter.network.backbone == "test_resnet"
    with pytest.raises(BadInput, match="one of quick"):
        recipe.preset_settings(method("cam"), "fast")


class Slow:
    """Settings of a proposer with a network, and the proposer."""

    kind = "slow"

    def proposer(self):
        return self

    def prepare(self, image):
        assert image.dtype == np.uint8
        assert image.shape[0] == image.shape[1]
        return "prepared"

    def regions(self, prepared):
        assert prepared == "prepared"


def test_the_proposal_of_regions_is_estimated(shapes, monkeypatch):
    corrclip = method("corrclip")
    settings = recipe.preset_settings(corrclip, "quick", {"segmenter": SMALL["segmenter"]})

    def seconds(settings):
        made = plan.plan(recipe.planned_stages(corrclip, settings, shapes), settings, shapes)
        return {stage.folder: stage.seconds for stage in made.stages}["regions"]

    # similar colours, at a known cost for a pixel
    assert seconds(settings) == 1
    monkeypatch.setattr(plan, "_REGIONS", 1e-2)
    pixels = sum(height * width for height, width in map(shapes.split("train").size_hw, range(6)))
    assert seconds(settings) == pytest.approx(pixels * 1e-2 / plan.launch.threads())
    # a network that takes 10 seconds for a picture
    monkeypatch.setattr(plan, "_timed", lambda work: work() or 10.0)
    assert seconds(dataclasses.replace(settings, proposer=Slow())) == pytest.approx(60)


@pytest.mark.parametrize(
    ("refiner", "expected"),
    [
        (CRFSettings(), True),
        (CRFSettings(by="scores"), True),
        (CRFSettings(by="par"), False),
        (RegionsSettings(), True),
        (RegionsSettings(by="sams"), False),
        (RegionsSettings(masks=MaskSettings(by="threshold")), False),
        (IRNetSettings(), True),
    ],
)
def test_refiners_that_use_the_dense_crf(refiner, expected):
    assert uses_crf(refiner) == expected
