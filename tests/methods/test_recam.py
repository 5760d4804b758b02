"""ReCAM: losses and maps against slow computations, gradients, pictures without tags, which weights are trained, a kill, two processes."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import check_a_stop
from tests.methods.taught import TRAINING, check_two_processes, train_on_one_of_two, write_baseline
from wsss.data.augment import ClassifierAugment
from wsss.errors import BadInput
from wsss.methods import cam, recam
from wsss.stages.train import train
from wsss.weights import WEIGHTS, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")
# none, one, two and three of three classes
TAGS = ([0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1])


def settings_of(folder: Path, images, **changes: object) -> recam.ReCAMSettings:
    """Settings that train in a second, from a baseline of random weights."""
    init = str(write_baseline(folder, images))
    augment = ClassifierAugment(long_side=(32, 40), crop=32)
    return recam.ReCAMSettings(**{"init": init, "augment": augment, "training": TRAINING, **changes})


@pytest.fixture
def settings(tmp_path, squares):
    return settings_of(tmp_path / "baseline", squares)


def drawn(n: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of n pictures, and both classifiers of three classes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, 5, 3, 4), (3, 5), (3, 5))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def slow_loss(features: Tensor, first: Tensor, second: Tensor, tags) -> Tensor:
    """The softmax loss by the paper's formula, picture by picture, tag by tag, cell by cell."""
    total = features.new_zeros(())
    for picture, row in zip(features, tags, strict=True):
        _, height, width = picture.shape
        cells = [picture[:, y, x] for y in range(height) for x in range(width)]
        losses = []
        for k in (k for k, tag in enumerate(row) if tag):
            of_cells = [torch.clamp(first[k] @ cell, min=0) for cell in cells]
            highest = max(of_cells) + 1e-5
            pooled = sum(value / highest * cell for value, cell in zip(of_cells, cells, strict=True)) / len(cells)
            scores = [second[c] @ pooled for c in range(len(second))]
            losses.append(sum(score.exp() for score in scores).log() - scores[k])
        if losses:
            total = total + sum(losses) / len(losses)
    return total / len(features)


def fast_loss(features: Tensor, first: Tensor, second: Tensor, tags) -> Tensor:
    pooled = recam.pooled_features(features, first[:, :, None, None])
    return recam.softmax_loss(pooled @ second.T, torch.tensor(tags, dtype=features.dtype))


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradients_are_those_of_the_formula(seed):
    ours, theirs = ([value.requires_grad_() for value in drawn(seed=seed)] for _ in range(2))
    fast, slow = fast_loss(*ours, TAGS), slow_loss(*theirs, TAGS)
    torch.testing.assert_close(fast, slow)
    for one, two in zip(torch.autograd.grad(fast, ours), torch.autograd.grad(slow, theirs), strict=True):
        torch.testing.assert_close(one, two)
        assert one.abs().max() > 0


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda *given: fast_loss(*given, TAGS), [v.requires_grad_() for v in drawn()])


def test_a_picture_without_tags_adds_nothing():
    values = [value.requires_grad_() for value in drawn(1)]
    loss = fast_loss(*values, TAGS[:1])
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, values))


def test_a_class_without_positive_cells_has_no_map():
    features, first, second = drawn(1)
    features = features.abs()
    first = -first.abs()
    assert fast_loss(features, first, second, [[1, 0, 0]]).item() == pytest.approx(math.log(3))


def test_losses_of_a_batch(settings, squares):
    torch.manual_seed(0)
    learning = dataclasses.replace(settings, weight=0.5).trainable(squares).train()
    image, tags = torch.randn(3, 3, 32, 32), torch.tensor([[1.0, 0], [1, 1], [0, 0]])
    found = learning({"image": image, "label": tags})
    network = learning.network
    with torch.no_grad():
        features = network.body(image)[-1]
        first, second = network.classifier.weight[:, :, 0, 0], network.predictor.weight[:, :, 0, 0]
        logits = features.mean((2, 3)) @ first.T
        expected = F.binary_cross_entropy_with_logits(logits, tags)
    torch.testing.assert_close(found["classification"], expected)
    torch.testing.assert_close(found["softmax"], 0.5 * slow_loss(features, first, second, tags.tolist()))


def test_what_learns(tmp_path, settings, squares):
    train(settings, squares, out=tmp_path / "trained")
    before, (after, metadata) = read_weights(Path(settings.init))[0], read_weights(tmp_path / "trained" / WEIGHTS)
    assert metadata["kind"] == "recam"
    assert after.keys() - before.keys() == {"predictor.weight"}
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "classifier.weight" in moved
    assert not any("running" in name or "conv1" in name.split(".")[:2] for name in moved)
    frozen = {name for name, value in settings.trainable(squares).network.named_parameters() if not value.requires_grad}
    assert frozen
    assert not moved & frozen
    torch.manual_seed(settings.training.seed)
    assert not torch.equal(settings.trainable(squares).network.predictor.weight, after["predictor.weight"])


def maps_of(inference, images, weights: Path, index: int = 0):
    localizer = inference.localizer(images, weights)
    picture = images.read(index)
    return localizer.cams(localizer.prepare(picture), picture.shape[:2], np.ones(2, bool))


def test_maps_are_those_of_the_product(tmp_path, settings, squares):
    train(settings, squares, out=tmp_path / "trained")
    scales, (state, _) = (1.0, 0.5), read_weights(tmp_path / "trained" / WEIGHTS)
    found = maps_of(recam.ReCAMInference(scales=scales), squares, tmp_path / "trained")
    network = settings.trainable(squares).network.eval()
    network.load_state_dict(state)
    localizer = recam.ReCAMInference(scales=scales).localizer(squares, tmp_path / "trained")
    picture = squares.read(0)
    height, width = picture.shape[:2]
    whole = [math.ceil(side / 16) * 16 for side in (height, width)]
    total = np.zeros((2, *whole))
    with torch.no_grad():
        product = network.classifier.weight[:, :, 0, 0] * network.predictor.weight[:, :, 0, 0]
        for view in localizer.prepare(picture):
            for turned in (False, True):
                (features,) = network.body(view.flip(3) if turned else view)[-1]
                for k in range(2):
                    cells = sum(product[k, d] * features[d] for d in range(len(features))).relu()
                    cells = cells.flip(1) if turned else cells
                    grown = F.interpolate(cells[None, None], whole, mode="bilinear", align_corners=False)
                    total[k] += grown[0, 0].numpy()
    total = total[:, :height, :width]
    np.testing.assert_allclose(found.maps, total / (total.max((1, 2), keepdims=True) + 1e-5), rtol=1e-3, atol=1e-4)
    assert found.maps.max() > 0.9


def test_with_a_second_classifier_of_ones_maps_are_those_of_the_baseline(tmp_path, settings, squares):
    trainable = settings.trainable(squares)
    torch.nn.init.ones_(trainable.network.predictor.weight)
    trainable.write(tmp_path)
    found = maps_of(recam.ReCAMInference(scales=(1.0, 0.5)), squares, tmp_path)
    expected = maps_of(cam.CAMInference(scales=(1.0, 0.5)), squares, Path(settings.init))
    np.testing.assert_array_equal(found.maps, expected.maps)
    np.testing.assert_array_equal(found.maps_stride4, expected.maps_stride4)


def test_a_training_alone_asks_for_a_baseline(squares):
    with pytest.raises(BadInput, match="`baseline`, which only `wsss run` trains"):
        recam.ReCAMSettings().trainable(squares)


def test_other_weights_are_refused(tmp_path, settings, squares):
    with pytest.raises(BadInput, match="weights of a `cam` network; expected those of a `recam` network"):
        recam.ReCAMInference().localizer(squares, Path(settings.init))
    state, metadata = read_weights(Path(settings.init))
    (tmp_path / "lost").mkdir()
    write_weights(tmp_path / "lost" / WEIGHTS, state, {**metadata, "kind": "recam"})
    with pytest.raises(BadInput, match=r"1 missing \(predictor.weight\)"):
        recam.ReCAMInference().localizer(squares, tmp_path / "lost")
    with pytest.raises(BadInput, match="Set `colours` to the same value"):
        dataclasses.replace(settings, colours="clip").trainable(squares)


def test_a_negative_weight_is_refused():
    with pytest.raises(BadInput, match="weight"):
        recam.ReCAMSettings(weight=-1)


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, settings, squares):
    check_a_stop(lambda out: train(settings, squares, out=out), tmp_path, recam.ReCAMObjective, 2)


def in_double(settings: recam.ReCAMSettings, images) -> recam.ReCAMObjective:
    torch.manual_seed(0)
    return settings.trainable(images).double().train()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    check_two_processes("tests.methods.test_recam", tmp_path, settings_of, in_double)


if __name__ == "__main__":
    train_on_one_of_two(Path(sys.argv[1]), settings_of, in_double)
