"""What networks were trained on: by their names, in records of stages, and over several stages."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from wsss.configs import CONFIGS
from wsss.foundations import FeatureSettings
from wsss.methods.clip_es import CLIPESInference
from wsss.methods.prompts import PromptsInference
from wsss.methods.weclip import WeCLIPSettings
from wsss.regions.sam import SAMSettings
from wsss.run import pretrained, read_record, stage
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.compare import Comparison, table
from wsss.stages.records import read_stages
from wsss.stages.runs import open_runs
from wsss.stages.supervised import spoken, supervision
from wsss.stages.thresholds import PIXEL_LABELS
from wsss.supervision import LEARNED, SUPERVISION, networks_behind, of_record, trained_on


@dataclasses.dataclass(frozen=True)
class Settings:
    title = "example"

    backbone: str = "resnet50"
    init: str = pretrained("imagenet")
    inner: FeatureSettings = FeatureSettings()


@stage(kind="example", makes="weights", title=None)
def make(settings: Settings, *, out: Path, **inputs: Path) -> dict[str, int]:
    (out / "weights.safetensors").write_bytes(b"1")
    return {}


def behind(settings):
    return networks_behind({"settings": settings}, read_record)


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("facebook/sam2.1-hiera-small", ["masks"]),
        ("sam_vit_b_01ec64.pth", ["masks"]),
        ("tue-mps/coco_panoptic_eomt_large_640", ["masks"]),
        ("nvidia/C-RADIOv2-B", ["masks", "image-text pairs", "pictures alone"]),
        ("IDEA-Research/grounding-dino-tiny", ["boxes", "image-text pairs"]),
        ("google/siglip2-base-patch16-224", ["image-text pairs"]),
        ("ViT-B-16.pt", ["image-text pairs"]),
        ("facebook/dinov2-with-registers-small", ["pictures alone"]),
        ("vit_small_patch14_dinov2", ["pictures alone"]),
        ("resnet50", ["image labels"]),
        ("ilsvrc-cls_rna-a1_cls1000_ep-0001.params", ["image labels"]),
        ("deeplabv1_resnet101-coco.pth", ["masks"]),
        ("deeplabv1_resnet101-imagenet.pth", ["image labels"]),
        ("sample.pth", ["not known"]),
        (str(CONFIGS / "demo_clip"), ["image-text pairs"]),
        (str(CONFIGS / "demo_dino"), ["pictures alone"]),
    ],
)
def test_by_name_or_folder(source, kinds):
    assert [*behind(FeatureSettings(source)).values()] == [kinds]


def test_each_part_declares_its_networks():
    assert behind(Settings()) == {"resnet50 (ImageNet)": ["image labels"]}
    assert behind(Settings(init="none")) == {}
    assert behind(DeepLabSettings(init="imagenet")) == {"resnet101 (ImageNet)": ["image labels"]}
    # what the name does not tell, the field does
    assert behind(SAMSettings(model="me/mine")) == {"me/mine": ["masks"]}
    assert behind(CLIPESInference(clip="me/mine")) == {"me/mine": ["image-text pairs"]}
    assert behind(Settings(inner=FeatureSettings("me/mine"))) == {"me/mine": ["not known"], **behind(Settings())}


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        (WeCLIPSettings(), ["facebook/dinov2-small", "openai/clip-vit-base-patch16"]),
        (WeCLIPSettings(variant="weclip"), ["openai/clip-vit-base-patch16"]),
        (PromptsInference(), ["facebook/sam3"]),
        (
            PromptsInference(model="IDEA-Research/grounding-dino-tiny"),
            ["IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-small"],
        ),
    ],
)
def test_networks_that_a_variant_does_not_use_are_not_named(settings, used):
    assert sorted(behind(settings)) == used


def test_weights_that_no_stage_made_are_named(tmp_path):
    for name, kinds in (("res50_clims.pth", ["not known"]), ("ViT-B-16.pt", ["image-text pairs"])):
        (tmp_path / name).write_bytes(b"1")
        assert networks_behind({"inputs": {"weights": tmp_path / name}}, read_record) == {name: kinds}
        # masks or maps may have been drawn by hand
        assert networks_behind({"inputs": {"masks": tmp_path / name}}, read_record) == {}
    assert networks_behind({"weights": tmp_path / "missing.pth"}, read_record) == {}


def test_records_hold_what_they_were_made_from(tmp_path):
    first = make(Settings(init="deeplabv1_resnet101-coco.pth"), out=tmp_path / "first")
    # by a folder, and by a file that a setting names
    second = make(Settings(init="none"), weights=first, out=tmp_path / "second")
    third = make(Settings(init=str(second / "weights.safetensors")), out=tmp_path / "third")
    networks = of_record(read_record(third))
    assert networks == {"deeplabv1_resnet101-coco.pth": ["masks"]}
    assert trained_on(networks) == {"masks": ["deeplabv1_resnet101-coco.pth"]}
    # it stays in the record when the first stage is gone
    shutil.rmtree(first)
    assert of_record(read_record(second)) == networks
    content = json.loads((second / "done.json").read_text())
    del content[SUPERVISION]
    assert [*trained_on(of_record(content))] == [LEARNED[-1]]


@dataclasses.dataclass(frozen=True)
class Masks:
    title = "masks"

    best: bool = False


@stage(kind="masks", makes="masks", title=None)
def make_masks(settings: Masks, *, out: Path) -> dict[str, str]:
    (out / "1.png").write_bytes(b"1")
    return {PIXEL_LABELS: "threshold" if settings.best else "none"}


@dataclasses.dataclass(frozen=True)
class Maps:
    title = "maps"

    words_only: bool = False


@stage(kind="localize", makes="maps", title=None)
def make_maps(settings: Maps, *, out: Path) -> dict[str, int]:
    (out / "1.npz").write_bytes(b"1")
    return {}


@stage(kind="walk", makes="maps", title=None)
def walk(settings: Masks, *, cams: Path, out: Path) -> dict[str, int]:
    (out / "1.npz").write_bytes(b"2")
    return {}


@pytest.mark.parametrize(("words_only", "tags"), [(True, "none, words only"), (False, "by hand")])
def test_walked_maps_have_the_tags_of_the_maps_before(tmp_path, words_only, tags):
    walk(Masks(), cams=make_maps(Maps(words_only), out=tmp_path / "cams"), out=tmp_path / "walked")
    assert supervision(tmp_path, read_stages(tmp_path))["tags"] == tags
    assert dict(Comparison(open_runs([tmp_path])).supervision)["tags"] == [tags]


def test_pixel_labels_and_networks_of_a_run(tmp_path):
    """The last stage knows them all, from masks that were passed to a training by name too."""
    run = tmp_path / "run"
    masks = make_masks(Masks(), out=run / "masks")
    make(Settings(), masks=masks, out=run / "segmenter")
    lines = supervision(run, read_stages(run))
    assert (lines["tags"], lines[PIXEL_LABELS]) == ("by hand", "none")
    assert lines["networks trained on image labels"] == "resnet50 (ImageNet)"
    assert {*spoken(lines)} == {"tags", PIXEL_LABELS, "networks trained on image labels"}
    other = tmp_path / "other"
    masks = make_masks(Masks(best=True), out=other / "masks")
    make(Settings(init="deeplabv1_resnet101-coco.pth"), masks=masks, out=other / "segmenter")
    corrected = tmp_path / "corrected"
    corrected.mkdir()
    (corrected / "1.png").write_bytes(b"2")
    third = tmp_path / "third"
    make(Settings(init="none"), masks=masks, corrected=corrected, out=third / "segmenter")
    comparison = Comparison(open_runs([run, other, third]))
    assert dict(comparison.supervision) == {
        "tags": ["by hand"] * 3,
        PIXEL_LABELS: ["none", "threshold", "corrected masks"],
        "networks trained on masks": ["none", "deeplabv1_resnet101-coco.pth", "none"],
        "networks trained on image labels": ["resnet50 (ImageNet)", "none", "none"],
    }
    shown = table(comparison)
    assert re.search(r"pixel labels used +none +threshold +corrected masks", shown)
    assert shown.count("networks trained on masks") == 1
