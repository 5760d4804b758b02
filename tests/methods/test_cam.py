"""The CAM baseline on any backbone: what stays frozen, where weights come from, whose weights are refused."""

import dataclasses

import numpy as np
import pytest
import torch

from wsss import classifier
from wsss.data.augment import ClassifierAugment
from wsss.errors import BadInput
from wsss.methods import cam
from wsss.stages.localize import localize
from wsss.stages.train import Training, train
from wsss.weights import read_weights, write_weights

SMALL = cam.CAMSettings(
    backbone="test_resnet",
    init="none",
    classifier_lr=1.0,
    augment=ClassifierAugment(long_side=(32, 40), crop=32),
    training=Training(batch=4, epochs=None, steps=3, optimizer="adamw", lr=1e-3, workers=0),
)


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet", "mobilenetv3_small_050", "convnext_atto"])
@pytest.mark.parametrize(("frozen", "some"), [("stages", True), ("stem", True), ("nothing", False)])
def test_what_stays_frozen(squares, backbone, frozen, some):
    settings = dataclasses.replace(SMALL, backbone=backbone, frozen=frozen)
    learning = settings.trainable(squares)
    learning.train()
    body = learning.network.body
    still = [parameter.requires_grad for parameter in body.parameters()]
    assert (not all(still)) == some
    assert still[-1]
    norms = [m for m in learning.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.training == (frozen == "nothing") for norm in norms)
    trained = {id(p) for group in learning.param_groups(settings.training) for p in group["params"]}
    assert trained == {id(p) for p in learning.network.parameters() if p.requires_grad}


def test_frozen_batch_norm_never_moves(squares):
    learning = dataclasses.replace(SMALL, frozen="stages").trainable(squares).train()
    before = {name: value.clone() for name, value in learning.network.named_buffers()}
    learning({"image": torch.randn(2, 3, 32, 32), "label": torch.ones(2, 2)})
    for name, value in learning.network.named_buffers():
        assert torch.equal(value, before[name]), name


def test_maps_of_a_picture_smaller_than_a_cell(squares):
    localizer = classifier.CAMLocalizer(classifier.CAMNetwork("test_resnet", 2).eval(), cam.CAMInference())
    image = np.zeros((3, 5, 3), np.uint8)
    classes, maps, strided = localizer.cams(localizer.prepare(image), (3, 5), np.array([True, True]))
    assert maps.shape == (2, 3, 5)
    assert strided.shape == (2, 1, 2)
    assert classes.tolist() == [0, 1]
    assert np.isfinite(maps).all()


def test_a_picture_without_tags_has_no_maps():
    localizer = classifier.CAMLocalizer(classifier.CAMNetwork("test_resnet", 2).eval(), cam.CAMInference())
    classes, maps, strided = localizer.cams(
        localizer.prepare(np.zeros((40, 50, 3), np.uint8)), (40, 50), np.zeros(2, bool)
    )
    assert len(classes) == 0
    assert maps.shape == (0, 40, 50)
    assert strided.shape == (0, 10, 13)


def test_maps_of_the_mirror_image_are_mirrored():
    torch.manual_seed(0)
    localizer = classifier.CAMLocalizer(classifier.CAMNetwork("test_resnet", 2).eval(), cam.CAMInference(scales=(1.0,)))
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    label = np.array([True, True])
    here = localizer.cams(localizer.prepare(image), (32, 48), label).maps
    there = localizer.cams(localizer.prepare(image[:, ::-1].copy()), (32, 48), label).maps
    np.testing.assert_allclose(there[:, :, ::-1], here, atol=1e-5)


def test_trained_weights_know_what_they_are(tmp_path, squares):
    train(SMALL, squares, out=tmp_path / "classifier")
    localize(cam.CAMInference(scales=(1.0,)), squares, weights=tmp_path / "classifier", out=tmp_path / "cams")
    others = dataclasses.replace(squares, class_names=("red", "green"))
    with pytest.raises(BadInput, match=r"a classifier of 2 classes \(red, blue\)"):
        cam.CAMInference().localizer(others, tmp_path / "classifier")


def test_a_published_checkpoint_localizes(tmp_path, squares):
    network = classifier.CAMNetwork("resnet50", 2)
    state = network.state_dict()
    # IRNet saves every tensor under further names
    state |= {f"stage4.0.{name.removeprefix('resnet50.layer4.')}": state[name] for name in state if ".layer4." in name}
    state |= {"newly_added.0.weight": state["classifier.weight"]}
    torch.save(state, tmp_path / "res50_cam.pth")
    localizer = cam.CAMInference().localizer(squares, tmp_path / "res50_cam.pth")
    for name, value in localizer.network.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(("classes", "found"), [(3, "a classifier of 3 classes"), (0, "no ResNet with a classifier")])
def test_foreign_checkpoints_are_refused(tmp_path, squares, classes, found):
    state = classifier.CAMNetwork("resnet18", classes).state_dict() if classes else {"weight": torch.zeros(3)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=found):
        cam.CAMInference().localizer(squares, tmp_path / "other.pth")


def test_a_segmenter_is_no_classifier(tmp_path, squares):
    write_weights(tmp_path / "weights.safetensors", {"a": torch.zeros(1)}, {"kind": "deeplab"})
    with pytest.raises(BadInput, match="weights of a `deeplab` network; expected those of a `cam` network"):
        cam.CAMInference().localizer(squares, tmp_path)


def test_initial_weights_of_another_architecture(tmp_path, squares):
    torch.save(classifier.CAMNetwork("resnet18", 2).state_dict(), tmp_path / "r18.pth")
    with pytest.raises(BadInput, match="weights of another network"):
        dataclasses.replace(SMALL, init=str(tmp_path / "r18.pth")).trainable(squares)


def test_a_trained_classifier_starts_another(tmp_path, squares):
    train(SMALL, squares, out=tmp_path / "a")
    weights = tmp_path / "a" / "weights.safetensors"
    learning = dataclasses.replace(SMALL, init=str(weights)).trainable(squares)
    state, _ = read_weights(weights)
    for name, value in learning.network.body.state_dict().items():
        assert torch.equal(value, state[f"backbone.{name}"])


def test_imagenet_weights_offline_say_what_to_do(squares, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(BadInput, match="--init none"):
        dataclasses.replace(SMALL, backbone="resnet18", init="imagenet").trainable(squares)
