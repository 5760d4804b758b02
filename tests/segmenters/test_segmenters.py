"""All segmenters: they learn, go on after a kill, say what they are; published files; what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import finished, tree, write_squares
from tests.segmenters.tiny import ALL, BODY, DEEPLAB_V1, lengthened, write_truths
from wsss.data.files import read_mask
from wsss.errors import BadInput
from wsss.networks.deeplab_v1 import DeepLabV1Layers
from wsss.networks.emanet import EMANet, EMANetLayers
from wsss.networks.pspnet import PSPNetLayers
from wsss.run import DONE
from wsss.segmenters import deeplab_v1, emanet, pspnet
from wsss.segmenters.learning import SegmenterObjective
from wsss.stages.checkpoint import CHECKPOINT
from wsss.stages.predict import PredictSettings, Segmenter, predict
from wsss.stages.train import train
from wsss.weights import WEIGHTS, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def trained(masked_squares, tmp_path_factory):
    """Gives the folder of a short training of a segmenter."""
    folder, (images, masks) = tmp_path_factory.mktemp("trained"), masked_squares
    return lambda kind: train(ALL[kind], images, masks=masks, out=folder / kind)


@pytest.mark.parametrize("kind", ALL)
def test_it_knows_itself_and_predicts_any_size(trained, kind):
    _, metadata = read_weights(trained(kind) / WEIGHTS)
    assert metadata["kind"] == kind
    assert metadata["classes"] == ["red", "blue"]
    segmenter = Segmenter(trained(kind), PredictSettings(scales=(0.5, 1.0), flip=True))
    for size_hw in ((1, 1), (5, 40), (33, 61)):
        image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
        here, there = (segmenter.probabilities(segmenter.prepare(view)) for view in (image, image[:, ::-1].copy()))
        assert here.shape == (3, *size_hw)
        np.testing.assert_allclose(here.sum(0), 1, atol=1e-5)
        # the others sample or fill up from the left, whichever way the picture looks
        if kind == "deeplab":
            np.testing.assert_allclose(there[:, :, ::-1], here, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_bfloat16_is_close_to_float32(trained, kind):
    image = np.random.default_rng(0).integers(0, 256, (33, 41, 3)).astype(np.uint8)
    segmenters = (Segmenter(trained(kind), PredictSettings((1.0,), False, precision=one)) for one in ("no", "bf16"))
    single, half = (one.probabilities(one.prepare(image)) for one in segmenters)
    assert half.dtype == np.float32
    # a pixel between two classes may change by more: rounding grows with the logits
    assert 0 < np.abs(single - half).mean() < 0.005
    assert (single.argmax(0) == half.argmax(0)).mean() > 0.98
    np.testing.assert_allclose(half.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_a_killed_training_ends_in_the_same_bytes(trained, masked_squares, tmp_path, monkeypatch, kind):
    (images, masks), forward, calls = masked_squares, SegmenterObjective.forward, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SegmenterObjective, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            train(ALL[kind], images, masks=masks, out=tmp_path / kind)
    assert (tmp_path / kind / CHECKPOINT).exists()
    train(ALL[kind], images, masks=masks, out=tmp_path / kind)
    whole = tree(trained(kind))
    # where the inputs lie is another place
    assert {name: value for name, value in tree(tmp_path / kind).items() if name != DONE} == {
        name: value for name, value in whole.items() if name != DONE
    }


@pytest.mark.parametrize("kind", ["emanet", "deeplab_v1", "pspnet"])
@pytest.mark.slow
def test_it_learns_squares(tmp_path, kind):
    images = write_squares(tmp_path / "pictures", 24, 64)
    # the wide head of PSPNet is slow
    batch, steps = (4, 40) if kind == "pspnet" else (8, 100)
    longer = {"batch": batch, "steps": steps, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 1e-4}
    settings = lengthened(ALL[kind], **longer, checkpoint_steps=200)
    augment = dataclasses.replace(settings.augment, crop=48, **({"fit": (64, 48)} if kind == "pspnet" else {}))
    settings = dataclasses.replace(settings, augment=augment)
    train(settings, images, masks=finished(write_truths(images, tmp_path / "masks")), out=tmp_path / "weights")
    new = write_squares(tmp_path / "new", 6, 64, seed=5)
    predict(PredictSettings(scales=(1.0,)), new, weights=tmp_path / "weights", out=tmp_path / "predictions")
    right = [
        (read_mask(tmp_path / "predictions" / f"{name}.png") == new.read_mask(i)).mean()
        for i, name in enumerate(new.names)
    ]
    assert np.mean(right) > 0.85


def test_published_defaults():
    settings = emanet.EMANetSettings()
    assert (settings.training.lr, settings.training.steps, settings.augment.crop) == (9e-3, 30_000, 513)
    assert deeplab_v1.DeepLabV1Settings().network.batch_norm == "live"
    assert pspnet.PSPNetSettings().underfitting == "clamp"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (emanet.EMANetSettings(network=EMANetLayers("resnet999s")), "resnet999s"),
        (emanet.EMANetSettings(network=EMANetLayers(output_stride=32)), "32; expected 8 or 16"),
        (deeplab_v1.DeepLabV1Settings(), "`imagenet`, which no library offers for resnet38"),
        (
            deeplab_v1.DeepLabV1Settings(network=DeepLabV1Layers(BODY, batch_norm="frozen"), init="none"),
            "`frozen` with new",
        ),
        (pspnet.PSPNetSettings(network=PSPNetLayers("resnet38"), init="missing.params"), r"missing\.params"),
        (pspnet.PSPNetSettings(network=PSPNetLayers(output_stride=16)), "16; expected 8"),
        (lengthened(pspnet.PSPNetSettings(init="none"), batch=1), r"training\.batch: found 1"),
    ],
)
def test_settings_that_cannot_work(settings, found):
    with pytest.raises(BadInput, match=found):
        settings.check(None)


@pytest.mark.parametrize(
    ("network", "setting"),
    [
        (EMANetLayers, {"bases": 0}),
        (EMANetLayers, {"stages": 0}),
        (EMANetLayers, {"norm_momentum": 1.5}),
        (DeepLabV1Layers, {"dilation": 0}),
        (deeplab_v1.DeepLabV1Settings, {"sigma": 0.0}),
    ],
)
def test_numbers_that_make_no_sense(network, setting):
    with pytest.raises(BadInput, match=next(iter(setting))):
        network(**setting)


def test_the_whole_map_as_the_neighbourhood(masked_squares):
    images, masks = masked_squares
    settings = dataclasses.replace(DEEPLAB_V1, sigma=None)
    torch.manual_seed(0)
    network = settings.trainable(images, masks=masks).network
    label = torch.zeros(2, 32, 40, dtype=torch.int64)
    terms = deeplab_v1.losses(network, torch.rand(2, 3, 32, 40), label, settings)
    assert np.isfinite(terms["similarity"].item())


def test_a_published_checkpoint_with_other_classes_and_bases(tmp_path):
    torch.manual_seed(0)
    made = EMANet(4, EMANetLayers("resnet50s", channels=256, bases=32)).eval()
    torch.save({"net": made.state_dict(), "step": 30000}, tmp_path / "final.pth")
    segmenter = Segmenter(tmp_path / "final.pth", PredictSettings())
    assert segmenter.classes == ("class 1", "class 2", "class 3")
    for name, value in made.state_dict().items():
        assert torch.equal(segmenter.trained.network.state_dict()[name].cpu(), value)


@pytest.mark.parametrize("kind", ["emanet", "deeplab_v1", "pspnet"])
def test_weights_of_another_network_are_refused(trained, tmp_path, kind):
    state, metadata = read_weights(trained(kind) / WEIGHTS)
    write_weights(tmp_path / "fewer.safetensors", state, {**metadata, "classes": ["red"]})
    with pytest.raises(BadInput, match="of another shape"):
        Segmenter(tmp_path / "fewer.safetensors", PredictSettings())
    state.popitem()
    write_weights(tmp_path / "cut.safetensors", state, metadata)
    with pytest.raises(BadInput, match="1 missing"):
        Segmenter(tmp_path / "cut.safetensors", PredictSettings())
    write_weights(tmp_path / "classifier.safetensors", state, {"kind": "cam"})
    with pytest.raises(BadInput, match="weights of a `cam` network"):
        Segmenter(tmp_path / "classifier.safetensors", PredictSettings())
