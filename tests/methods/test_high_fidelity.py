"""The follow-up's losses on any classifier, against sums over cells and pairs written out; on the CAM baseline as users train it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from tests.methods.test_cam import SMALL
from wsss.data.augment import IMAGENET_MEAN, IMAGENET_STD
from wsss.errors import BadInput
from wsss.methods import cam, high_fidelity
from wsss.stages.localize import localize
from wsss.stages.train import train

MEAN, STD = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
BOTH = high_fidelity.HighFidelity(importance=0.2, similarity=0.7, sigma=1.5)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 3, 4, 5)))
    tags = torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    draws = torch.from_numpy(rng.random((2, 3, 10)))
    # as large as the maps, so that cells have the colours of pixels
    image = (torch.from_numpy(rng.random((2, 3, 4, 5))) - MEAN) / STD
    return logits, tags, draws, image


def soft_margin(logit, tag):
    return math.log1p(math.exp(-logit if tag else logit))


def sampled_by_hand(logits, tags, draws, inside):
    found = []
    for n, c, s in np.ndindex(*draws.shape):
        weights = [1 / (1 + math.exp(-value)) + 1e-5 for value in logits[n, c].ravel()] * inside[n].ravel()
        below = np.cumsum(weights) / sum(weights)
        cell = next(k for k, edge in enumerate(below) if draws[n, c, s] < edge)
        found.append(soft_margin(logits[n, c].ravel()[cell], tags[n, c]))
    return float(np.mean(found))


def similar_by_hand(logits, tags, colours, mu, sigma, inside):
    total = 0.0
    (n_pictures, n_classes, height, width) = logits.shape
    for n in range(n_pictures):
        maps = np.zeros((n_classes + 1, height, width))
        for c in range(n_classes):
            q = np.maximum(logits[n, c], 0)
            maps[c + 1] = tags[n, c] * np.maximum(q - q.min() - 1e-5, 0) / (q.max() - q.min() + 1e-5)
        maps[0] = 1 - maps[1:].max(0)
        cells = list(zip(*np.nonzero(inside[n]), strict=True))
        for i in cells:
            for j in cells:
                d = min(np.abs(colours[n, :, *i] - colours[n, :, *j]).sum() / 3, 1)
                gate = math.tanh(mu + math.log((d + 1e-5) / (1 - d + 1e-5)))
                apart = (i[0] - j[0]) ** 2 + (i[1] - j[1]) ** 2
                weight = math.exp(-apart / sigma**2 / 2) / (2 * math.pi * sigma**2)
                total -= weight * gate * ((maps[:, *i] - maps[:, *j]) ** 2).sum() / 2 / len(cells)
    return total / n_pictures


@pytest.mark.parametrize("masked", [False, True])
def test_sums_written_out(given, masked):
    logits, tags, draws, image = given
    inside = np.ones((2, 4, 5), bool)
    if masked:
        inside[0, 3:], inside[1, :, :2] = False, False
        image = image * torch.from_numpy(inside)[:, None]
    found = high_fidelity.losses(dataclasses.replace(BOTH, mask_padding=masked), logits, tags, draws, image)
    pooled = np.mean([soft_margin(float(logits[n, c].mean()), tags[n, c]) for n, c in np.ndindex(2, 3)])
    expected = 0.8 * pooled + 0.2 * sampled_by_hand(logits.numpy(), tags, draws.numpy(), inside)
    assert float(found["classification"]) == pytest.approx(expected, rel=1e-10)
    colours = (image * STD + MEAN).numpy()
    similar = similar_by_hand(logits.numpy(), tags.numpy(), colours, BOTH.mu, BOTH.sigma, inside)
    assert float(found["feature_similarity"]) == pytest.approx(0.7 * similar, rel=1e-8)


def test_the_mean_over_all_draws(given):
    logits, tags, _, image = given
    many = torch.from_numpy(np.random.default_rng(1).random((2, 3, 200_000)))
    drawn, exact = (
        high_fidelity.losses(high_fidelity.HighFidelity(importance=1.0), logits, tags, draws, image)["classification"]
        for draws in (many, None)
    )
    assert float(drawn) == pytest.approx(float(exact), rel=5e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(given, masked):
    logits, tags, draws, image = given
    image[:, :, :1] = 0
    settings = dataclasses.replace(BOTH, mask_padding=masked)
    torch.autograd.gradcheck(
        lambda maps: sum(high_fidelity.losses(settings, maps, tags, draws, image).values()),
        (logits.requires_grad_(),),
        eps=1e-7,
        atol=1e-6,
    )


@pytest.mark.parametrize("samples", [10, 0])
def test_a_classifier_learns_with_them(tmp_path, squares, samples):
    chosen = dataclasses.replace(BOTH, samples=samples)
    settings = dataclasses.replace(SMALL, high_fidelity=chosen)
    weights = train(settings, squares, out=tmp_path / "classifier")
    last = json.loads((weights / "done.json").read_text())["result"]["final"]
    assert last["classification"] > 0
    assert np.isfinite(last["feature_similarity"])
    plain = train(SMALL, squares, out=tmp_path / "plain")
    assert (weights / "weights.safetensors").read_bytes() != (plain / "weights.safetensors").read_bytes()
    maps = localize(cam.CAMInference(scales=(1.0,)), squares, weights=weights, out=tmp_path / "cams")
    assert len(list(maps.rglob("*.npz"))) == len(squares)


def test_without_them_the_loss_is_that_of_the_baseline(squares):
    learning = SMALL.trainable(squares).eval()
    batch = {"image": torch.randn(3, 3, 32, 32), "label": torch.tensor([[1.0, 0], [0, 1], [1, 1]])}
    logits = learning.network.maps(batch["image"])
    found = high_fidelity.losses(high_fidelity.HighFidelity(), logits, batch["label"], None, batch["image"])
    assert list(found) == ["classification"]
    torch.testing.assert_close(found["classification"], learning(batch)["classification"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{"importance": 1.1}, {"samples": -1}, {"similarity": -1.0}, {"sigma": 0.0}])
def test_settings_out_of_range(changes):
    with pytest.raises(BadInput, match=f"high_fidelity.{next(iter(changes))}: found"):
        high_fidelity.HighFidelity(**changes)
