"""Erosion, pooling, voting and painting of regions against slow oracles."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from wsss.ops import region_shapes, retrieval
from wsss.ops.regions import Regions

SEEDS = st.integers(0, 2**32 - 1)


def drawn_labels(rng: np.random.Generator, size: int = 40) -> np.ndarray:
    """A few rectangles of labels and of ignored pixels."""
    labels = np.zeros((size, size + 7), np.uint8)
    for _ in range(5):
        top, left = rng.integers(0, size, 2)
        height, width = rng.integers(3, 25, 2)
        labels[top : top + height, left : left + width] = rng.choice([0, 1, 2, 255])
    return labels


def unit(rng: np.random.Generator, n: int, d: int = 6) -> np.ndarray:
    return retrieval.unit_rows(rng.normal(size=(n, d)).astype(np.float32))


@given(SEEDS, st.integers(0, 6))
def test_erosion_is_repeated_erosion_by_a_3x3_square(seed, times):
    labels = drawn_labels(np.random.default_rng(seed))
    found = region_shapes.eroded_regions(labels, erosion=times, fewest_pixels=1)
    by_label = dict(zip(found.labels.tolist(), found.masks, strict=True))
    for label in (0, 1, 2):
        # pixels outside the picture count as inside
        slow = cv2.erode((labels == label).astype(np.uint8), np.ones((3, 3)), iterations=times).astype(bool)
        np.testing.assert_array_equal(by_label.get(label, np.zeros_like(slow)), slow)
    assert found.labels.tolist() == sorted(by_label, key=lambda label: (label == 0, label))


def test_components_are_regions_of_their_own_and_erode_by_their_own_size():
    labels = np.zeros((60, 80), np.uint8)
    labels[5:15, 5:15], labels[5:45, 30:70] = 1, 1
    whole = region_shapes.eroded_regions(labels, share=0.1, fewest_pixels=1)
    parts = region_shapes.eroded_regions(labels, share=0.1, components=True, fewest_pixels=1)
    assert whole.labels.tolist() == [1, 0]
    assert parts.labels.tolist() == [1, 1, 0]
    # a tenth of 10 and of 40 pixels on each side
    assert parts.masks[:2].sum((1, 2)).tolist() == [8 * 8, 32 * 32]


@pytest.mark.parametrize(("fewest", "count"), [(100, 1), (101, 0)])
def test_smaller_regions_are_left_out(fewest, count):
    labels = np.full((40, 40), 255, np.uint8)
    labels[10:22, 10:22] = 3
    assert len(region_shapes.eroded_regions(labels, erosion=1, fewest_pixels=fewest).labels) == count


@given(SEEDS, st.integers(1, 9))
def test_shares_are_means_over_cells(seed, cell):
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 17, 23)) < 0.5
    rows, columns = -(-17 // cell) + 1, -(-23 // cell)
    padded = np.zeros((3, rows * cell, columns * cell))
    padded[:, :17, :23] = masks
    slow = padded.reshape(3, rows, cell, columns, cell).mean((2, 4)).reshape(3, rows * columns)
    shares = retrieval.shares_inside(Regions.of_masks(masks), cell, (rows, columns))
    np.testing.assert_allclose(shares, slow, atol=1e-6)


def test_a_grid_that_does_not_cover_the_picture_is_an_error():
    with pytest.raises(ValueError, match="do not cover"):
        retrieval.shares_inside(Regions.of_masks(np.ones((1, 10, 10), bool)), 4, (2, 3))


def slow_vote(similarity: np.ndarray, labels: np.ndarray, k: int, weights: np.ndarray) -> tuple[int, float]:
    order = sorted(range(len(labels)), key=lambda j: (-similarity[j], j))[:k]
    best = None
    for label in dict.fromkeys(labels[order].tolist()):
        near = [similarity[j] for j in order if labels[j] == label]
        key = (len(near) * weights[label], sum(near))
        if best is None or key > best[0]:
            best = (key, label, float(np.mean(near)))
    assert best is not None
    return best[1], best[2]


@given(SEEDS, st.integers(1, 12), st.sampled_from(["plain", "balanced"]))
def test_votes_against_a_loop(seed, k, voting):
    rng = np.random.default_rng(seed)
    queries, bank = unit(rng, 5), unit(rng, int(rng.integers(1, 12)))
    labels = rng.integers(0, 4, len(bank))
    votes = retrieval.vote(queries, bank, labels, 4, k=k, voting=voting)
    weights = np.ones(4) if voting == "plain" else 1 / np.maximum(np.bincount(labels, minlength=4), 1)
    for index, similarity in enumerate(queries @ bank.T):
        label, score = slow_vote(similarity, labels, k, weights)
        assert votes.labels[index] == label
        assert votes.scores[index] == pytest.approx(score, abs=1e-6)
    np.testing.assert_allclose(votes.nearest, (queries @ bank.T).max(1), atol=1e-6)
    np.testing.assert_allclose(votes.shares.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(votes.shares.argmax(1), votes.labels)
    assert (np.diff(votes.similarities, axis=1) <= 1e-7).all()


def test_votes_by_class_compare_the_best_of_each_class():
    bank = retrieval.unit_rows(np.array([[1, 0]] * 2 + [[0.8, 0.6]] * 30, np.float32))
    labels = np.array([1] * 2 + [0] * 30)
    query = retrieval.unit_rows(np.array([[1, 0.1]], np.float32))
    # two vectors are outvoted by thirty that are farther away
    assert retrieval.vote(query, bank, labels, 2).labels.tolist() == [0]
    votes = retrieval.vote(query, bank, labels, 2, voting="by-class")
    assert votes.labels.tolist() == [1]
    assert set(votes.neighbours[0].tolist()) == {0, 1, -1}
    assert votes.shares[0, 1] > 0.9


@given(SEEDS, st.integers(1, 12))
def test_votes_by_class_against_a_loop(seed, k):
    rng = np.random.default_rng(seed)
    queries, bank = unit(rng, 4), unit(rng, 30)
    labels = rng.integers(0, 3, 30)
    votes = retrieval.vote(queries, bank, labels, 4, k=k, voting="by-class")
    for index, similarity in enumerate(queries @ bank.T):
        means = {label: np.sort(similarity[labels == label])[::-1][:8].mean() for label in np.unique(labels).tolist()}
        best = max(means, key=lambda label: means[label])
        assert votes.labels[index] == best
        assert votes.scores[index] == pytest.approx(means[best], abs=1e-6)
        weights = np.array([np.exp(25 * means[label]) if label in means else 0.0 for label in range(4)])
        np.testing.assert_allclose(votes.shares[index], weights / weights.sum(), atol=1e-5)
        of_best = [j for j in np.argsort(-similarity, kind="stable").tolist() if labels[j] == best][:k]
        assert [row for row in votes.neighbours[index].tolist() if row >= 0] == of_best
        assert votes.nearest[index] == pytest.approx(similarity.max(), abs=1e-6)


@pytest.mark.parametrize("voting", ["plain", "balanced", "by-class"])
def test_only_allowed_vectors_vote(voting):
    rng = np.random.default_rng(0)
    queries, bank, labels = unit(rng, 4), unit(rng, 9), np.arange(9) % 3
    allowed = np.broadcast_to(labels == 2, (4, 9)).copy()
    allowed[3] = False
    votes = retrieval.vote(queries, bank, labels, 3, k=5, voting=voting, allowed=allowed)
    assert votes.labels.tolist() == [2, 2, 2, 0]
    assert votes.scores[3] == 0
    assert (labels[votes.neighbours[:3]][votes.neighbours[:3] >= 0] == 2).all()
    assert (votes.neighbours[3] == -1).all()
    np.testing.assert_allclose(votes.shares.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("voting", ["plain", "by-class"])
@pytest.mark.parametrize(("queries", "bank"), [(0, 5), (3, 0), (0, 0)])
def test_without_regions_or_without_a_bank_all_is_background(queries, bank, voting):
    rng = np.random.default_rng(0)
    votes = retrieval.vote(unit(rng, queries), unit(rng, bank), np.ones(bank, np.int64), 2, voting=voting)
    assert votes.labels.tolist() == [0] * queries
    assert votes.shares.shape == (queries, 2)
    assert (votes.shares[:, 0] == 1).all()


@given(SEEDS)
def test_distinct_masks_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((8, 13, 11), bool)
    for mask in masks:
        top, left = rng.integers(0, 8, 2)
        mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = True
    labels, scores = rng.integers(0, 2, 8), np.round(rng.random(8), 1)
    kept: list[int] = []
    for index in sorted(range(8), key=lambda i: (-scores[i], i)):
        rivals = [other for other in kept if labels[other] == labels[index]]
        overlaps = [(masks[index] & masks[o]).sum() / (masks[index] | masks[o]).sum() for o in rivals]
        if all(overlap <= 0.4 for overlap in overlaps):
            kept.append(index)
    shared = Regions.of_masks(masks).intersections()
    assert region_shapes.distinct(shared, labels, scores).tolist() == kept


@given(SEEDS)
def test_leaving_pictures_out_is_voting_by_the_others(seed):
    rng = np.random.default_rng(seed)
    bank, labels, pictures = unit(rng, 12), rng.integers(0, 3, 12), rng.integers(0, 4, 12)
    found = retrieval.leave_pictures_out(bank, labels, pictures, 3, k=4)
    for index in range(12):
        others = pictures != pictures[index]
        alone = retrieval.vote(bank[index : index + 1], bank[others], labels[others], 3, k=4)
        assert found.labels[index] == alone.labels[0]
        assert found.own[index] == pytest.approx(alone.shares[0, labels[index]])
        if others.any():
            assert found.nearest[index] == pytest.approx((bank[others] @ bank[index]).max(), abs=1e-6)


def slow_recall(threshold: float, left_out: retrieval.LeftOut, labels: np.ndarray) -> float:
    decided = np.where(left_out.nearest < threshold, 0, left_out.labels)
    return sum(float((decided[labels == label] == label).mean()) for label in np.unique(labels))


@given(SEEDS)
def test_no_threshold_for_the_background_has_a_better_mean_recall(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 15)
    left_out = retrieval.LeftOut(
        rng.integers(0, 3, 15), np.zeros(15, np.float32), np.round(rng.random(15), 2).astype(np.float32)
    )
    found = retrieval.background_threshold(left_out, labels)
    best = max(slow_recall(t, left_out, labels) for t in [0.0, *left_out.nearest.tolist()])
    assert slow_recall(found, left_out, labels) == pytest.approx(best)
    assert found == 0 or best > slow_recall(0.0, left_out, labels) - 1e-12


@given(SEEDS, st.integers(1, 40))
def test_small_holes_are_filled_and_small_islands_removed(seed, fewest):
    mask = cv2.blur(np.random.default_rng(seed).random((21, 26)), (3, 3)) > 0.5
    expected, had = mask.copy(), False
    for value in (False, True):
        numbers, count = ndimage.label(expected == value, np.ones((3, 3)))
        areas = [int((numbers == number).sum()) for number in range(1, count + 1)]
        had |= any(area < fewest for area in areas)
        for number, area in enumerate(areas, 1):
            # of islands that are all small, the first of the largest ones stays
            last = value and max(areas) < fewest and number == 1 + areas.index(max(areas))
            if area < fewest and not last:
                expected[numbers == number] = not value
    found, changed = region_shapes.without_small_parts(mask, fewest)
    np.testing.assert_array_equal(found, expected)
    assert changed == had
