"""Networks that start from the classifier of a run: what cannot fit is refused before the classifier is trained."""

import pytest
import yaml

from tests.end_to_end.conftest import TINY
from wsss.classifier import CAMNetwork
from wsss.cli import main
from wsss.weights import WEIGHTS, write_weights

SEGMENTERS = {
    "deeplab": {"network": {"backbone": "test_resnet", "batch_norm": "live"}},
    "emanet": {"network": {"backbone": "test_resnet"}},
    "deeplab_v1": {"network": {"backbone": "test_resnet"}},
    "pspnet": {"network": {"backbone": "test_resnet"}},
}


def refused(capsys, out, *words) -> str:
    """The error of a command that stops with status 2 and leaves nothing that was made."""
    assert main([str(word) for word in (*words, "--out", out)]) == 2
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob("*.pt"))
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_segmenter_with_another_backbone_than_the_classifier(tmp_path, shapes, capsys, kind):
    settings = {
        "classifier": {**TINY["classifier"], "backbone": "resnet18"},
        "segmenter": {"kind": kind, "init": "classifier", **SEGMENTERS[kind]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ("run", "cam", "--data", shapes, "--config", tmp_path / "run.yaml", "--device", "cpu")
    printed = refused(capsys, tmp_path / "run", *words)
    assert "segmenter.init: found `classifier` for test_resnet, but the classifier has another backbone" in printed
    assert "0 of " in printed or "missing" in printed


@pytest.mark.parametrize(
    ("refiner", "name"),
    [
        ({"kind": "irnet", "network": {"backbone": "resnet34", "init": "classifier"}}, "resnet34"),
        ({"kind": "affinitynet", "network": {"backbone": "resnet34", "init": "classifier"}}, "resnet34"),
    ],
)
def test_a_refiner_with_another_backbone_than_the_classifier(tmp_path, shapes, capsys, refiner, name):
    settings = {"classifier": {**TINY["classifier"], "backbone": "resnet18"}, "refiner": refiner}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ("run", "cam", "--data", shapes, "--config", tmp_path / "run.yaml", "--device", "cpu")
    printed = refused(capsys, tmp_path / "run", *words)
    assert f"refiner.network.init: found `classifier` for {name}, but" in printed


def test_given_weights_of_another_backbone(tmp_path, shapes, capsys):
    from wsss.data.open import open_dataset

    data = open_dataset(shapes)
    names = list(data.split(data.train).class_names)
    described = {"kind": "cam", "backbone": "resnet18", "output_stride": 16, "classes": names, "colours": "imagenet"}
    write_weights(tmp_path / "cam" / WEIGHTS, CAMNetwork("resnet18", len(names)).state_dict(), described)
    segmenter = {"kind": "emanet", "init": "classifier", **SEGMENTERS["emanet"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"segmenter": segmenter}))
    for weights in (tmp_path / "cam", tmp_path / "cam" / WEIGHTS):
        words = ("run", "cam", "--data", shapes, "--config", tmp_path / "run.yaml", "--weights", weights)
        printed = refused(capsys, tmp_path / "run", *words, "--device", "cpu")
        assert "segmenter.init: found `classifier` for test_resnet, but" in printed


@pytest.mark.parametrize(
    ("backbone", "stride", "found"),
    [
        ("mixer_s32_224", 32, "does not accept a picture of"),
        ("test_vit", 32, "Set the output stride to 16"),
        ("resnet5", 16, "Did you mean resnet50"),
    ],
)
def test_a_backbone_that_cannot_give_maps(tmp_path, shapes, capsys, backbone, stride, found):
    words = ("run", "cam", "--data", shapes, "--classifier.backbone", backbone, "--classifier.output_stride", stride)
    printed = refused(capsys, tmp_path / "run", *words, "--classifier.init", "none", "--device", "cpu")
    assert f"backbone {backbone}: found" in printed
    assert found in printed
