"""Importance sampling: what is drawn how often, where gradients go, maps that are 0."""

import pytest
import torch
import torch.nn.functional as F

from wsss.ops.importance import (
    binomial_importance_loss,
    draw_cells,
    importance_loss,
    multi_label_loss,
    probability_logits,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cells_are_drawn_by_their_weights():
    weights = torch.tensor([[[[1.0, 0.0, 3.0], [0.0, 4.0, 0.0]]]], dtype=torch.float64)
    evenly = (torch.arange(800, dtype=torch.float64) / 800)[None, None]
    drawn = draw_cells(weights, evenly)
    assert torch.bincount(drawn.flatten(), minlength=6).tolist() == [100, 0, 300, 0, 400, 0]
    # the first cell from 0 on, the last one with a weight up to 1
    assert draw_cells(weights, torch.tensor([[[0.0, 1 - 1e-16]]], dtype=torch.float64)).tolist() == [[[0, 4]]]


def test_every_map_has_its_own_draws():
    weights, draws = random(3, 4, 5, 6), random(3, 4, 7, seed=1)
    together = draw_cells(weights, draws)
    for n in range(3):
        for c in range(4):
            alone = draw_cells(weights[n : n + 1, c : c + 1], draws[n : n + 1, c : c + 1])
            assert torch.equal(together[n, c], alone[0, 0])


def test_a_map_of_zeros_can_be_drawn_from():
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    loss = importance_loss(maps, torch.tensor([[1.0, 0.0]]), random(1, 2, 5))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(maps.grad).all()


def test_a_map_of_zeros_has_a_mean_over_all_draws():
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 1, 1] = 0.5
    label = torch.tensor([[1.0, 0.0]])
    drawn = importance_loss(maps, label, torch.rand(1, 2, 5))
    torch.testing.assert_close(importance_loss(maps, label, None), drawn)


@pytest.mark.parametrize("loss", [importance_loss, binomial_importance_loss])
@pytest.mark.parametrize("samples", [True, False])
def test_cells_that_cannot_be_drawn(loss, samples):
    maps, label = random(2, 3, 5, 6), torch.tensor([[1.0, 0, 1], [0, 1, 1]], dtype=torch.float64)
    draws = random(2, 3, 50, seed=1) if samples else None
    inside = torch.zeros(2, 5, 6, dtype=torch.bool)
    inside[:, 1:4, 2:] = True
    torch.testing.assert_close(loss(maps, label, draws, inside), loss(maps[:, :, 1:4, 2:], label, draws))


def test_probability_logits_are_finite_and_rise():
    logits = probability_logits(torch.linspace(0, 1, 101))
    assert (logits.diff() > 0).all()
    torch.testing.assert_close(logits[[0, -1]], torch.tensor([-6.9078, 6.9078]), rtol=0, atol=1e-4)
    # its sigmoid is (p (1 - eps) + eps) / (1 + eps)
    p = random(20)
    torch.testing.assert_close(probability_logits(p).sigmoid(), (p * 0.999 + 0.001) / 1.001)


def test_the_loss_is_the_multi_label_soft_margin():
    logits, label = random(4, 5) * 6 - 3, random(4, 5, seed=1) > 0.5
    torch.testing.assert_close(multi_label_loss(logits, label), F.multilabel_soft_margin_loss(logits, label.double()))
    samples = random(4, 5, 3)
    each = [F.multilabel_soft_margin_loss(samples[..., m], label.double()) for m in range(3)]
    torch.testing.assert_close(multi_label_loss(samples, label), sum(each) / 3)


@pytest.mark.parametrize("loss", [importance_loss, binomial_importance_loss])
def test_gradients_reach_the_drawn_cells_alone(loss):
    maps, label, draws = random(2, 3, 4, 5).requires_grad_(), random(2, 3, seed=1) > 0.5, random(2, 3, 2, seed=2)
    loss(maps, label, draws).backward()
    weights = maps.detach() if loss is importance_loss else maps.detach().sigmoid() + 1e-5
    drawn = torch.zeros(2, 3, 20).scatter_(2, draw_cells(weights, draws), 1).bool().view(2, 3, 4, 5)
    assert torch.equal(maps.grad != 0, drawn)


@pytest.mark.parametrize("loss", [importance_loss, binomial_importance_loss])
def test_many_samples_come_close_to_the_mean_over_all_draws(loss):
    maps, label = random(2, 3, 4, 5), random(2, 3, seed=1) > 0.5
    evenly = (torch.arange(20_000, dtype=torch.float64) / 20_000).expand(2, 3, -1)
    torch.testing.assert_close(loss(maps, label, evenly), loss(maps, label, None), rtol=1e-3, atol=0)
