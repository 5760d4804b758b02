"""Retrieval of regions: pooled features, a bank of them, and votes of the nearest ones (ModuSeg: arXiv 2604.07021)."""

from typing import Literal, NamedTuple

import numpy as np

from wsss.arrays import Bool, Float, Int
from wsss.ops.regions import Regions

Voting = Literal["plain", "balanced", "by-class"]

# published: the share of a class that is dropped from the bank, and the number of neighbours
DROPPED, NEIGHBOURS = 0.25, 25
# neighbours of each class, and the factor before the softmax, of votes by class
OF_CLASS, SHARPNESS = 8, 25.0
# bank vectors that are compared at once with all others
_ROWS = 1024


def shares_inside(regions: Regions, cell: int, grid_hw: tuple[int, int]) -> Float[np.ndarray, "n p"]:
    """The share of each cell that is inside each region, float32, row by row; outside the picture, nothing is inside.

    Args:
        regions: of a picture.
        cell: side of a cell in pixels.
        grid_hw: rows and columns of cells, which cover the picture.

    Raises:
        ValueError: the grid is smaller than the picture.
    """
    (height, width), (rows, columns) = regions.size_hw, grid_hw
    if rows * cell < height or columns * cell < width:
        raise ValueError(f"{rows}x{columns} cells of {cell} pixels do not cover {height}x{width}")
    cells = (np.arange(height) // cell * columns)[:, None] + np.arange(width) // cell
    count = len(regions.atom_areas)
    pairs = np.bincount(
        (regions.atoms.astype(np.int64) * (rows * columns) + cells).ravel(), minlength=count * rows * columns
    )
    shares = pairs.reshape(count, rows * columns) / np.float32(cell * cell)
    return regions.summed(shares.astype(np.float32))


def pool(tokens: Float[np.ndarray, "p d"], weights: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n d"]:
    """The mean feature of each region as a unit vector; zeros for a region without pixels.

    f = sum_i w_i t_i / (sum_i w_i + 1e-8), divided by its norm.

    Args:
        tokens: the feature t_i of each cell.
        weights: the share w_i of each cell that is inside the region.
    """
    totals = weights.sum(1, keepdims=True)
    means = (weights @ tokens) / (totals + np.float32(1e-8))
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.where(totals < 1e-6, 0, unit).astype(np.float32)


def unit_rows(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Vectors divided by (their norm + 1e-8), float32."""
    vectors = vectors.astype(np.float32)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + np.float32(1e-8))


def nearest_to_mean(vectors: Float[np.ndarray, "n d"], dropped: float = DROPPED) -> Int[np.ndarray, " k"]:
    """The vectors of a class that are kept, as ascending indices: the floor(dropped n) farthest from their mean are left out."""
    distances = distances_from_mean(vectors)
    order = np.argsort(distances, kind="stable")
    return np.sort(order[: len(vectors) - int(dropped * len(vectors))])


def distances_from_mean(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The distance of each vector from the mean of all."""
    return np.linalg.norm(vectors - vectors.mean(0), axis=1)


class Votes(NamedTuple):
    """What the nearest vectors of a bank say about regions.

    Attributes:
        labels: the label with most votes, (n,); 0 for a region without neighbours.
        scores: mean similarity to the neighbours of that label, (n,); 0 without neighbours.
        shares: the share of the votes of each label, (n, l). Rows sum to 1, and the highest is that of `labels`.
        neighbours: rows of the bank, nearest first, (n, k); -1 where there are fewer.
        similarities: to these neighbours, (n, k).
        nearest: similarity to the nearest vector of any label, (n,); -1 without neighbours.
    """

    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    shares: Float[np.ndarray, "n l"]
    neighbours: Int[np.ndarray, "n k"]
    similarities: Float[np.ndarray, "n k"]
    nearest: Float[np.ndarray, " n"]


# what the label with most votes gets on top of its share if another one has as many
_WINS = 1e-3


def vote(
    queries: Float[np.ndarray, "n d"],
    bank: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, " m"],
    n_labels: int,
    *,
    k: int = NEIGHBOURS,
    voting: Voting = "plain",
    allowed: Bool[np.ndarray, "n m"] | None = None,
) -> Votes:
    """Label regions by the vectors of a bank that are most similar.

    Plain: the label with most votes among the k nearest vectors; on ties the one with the larger sum of similarities, then the one of the
    nearest vector. Balanced: each vote counts 1 / (vectors of its label in the bank). By class: the softmax of the mean of the
    8 highest similarities to each label; the neighbours are those of the label that wins.

    Args:
        queries: unit vectors.
        bank: unit vectors.
        labels: of the bank, below `n_labels`.
        n_labels: number of labels, with the background.
        k: number of neighbours.
        voting: how votes are counted.
        allowed: which vectors of the bank each query may be compared with; all if None.
    """
    count = min(k, len(bank))
    if len(queries) == 0 or count == 0:
        return _without_neighbours(len(queries), n_labels, count)
    similarity = (queries @ bank.T).astype(np.float32, copy=False)
    if allowed is not None:
        similarity[~allowed] = -np.inf
    if voting == "by-class":
        return _by_class(similarity, labels, n_labels, count)
    neighbours, near = _nearest(similarity, count)
    present = np.isfinite(near)
    # one column of votes for each label
    chosen = np.eye(n_labels)[labels[neighbours]] * present[..., None]
    per_label = np.maximum(np.bincount(labels, minlength=n_labels), 1) if voting == "balanced" else np.ones(n_labels)
    sums = (chosen * np.where(present, near, 0)[..., None]).sum(1)
    votes = chosen.sum(1)
    return _decided(votes / per_label, sums, votes, np.where(present, neighbours, -1), near, labels)


def _without_neighbours(n: int, n_labels: int, count: int) -> Votes:
    """All regions are background."""
    shares = np.eye(1, n_labels, dtype=np.float32).repeat(n, axis=0)
    none, zeros = np.full((n, count), -1, np.int64), np.zeros(n, np.float32)
    return Votes(np.zeros(n, np.int64), zeros, shares, none, np.zeros(none.shape, np.float32), zeros - 1)


def _nearest(
    similarity: Float[np.ndarray, "n m"], count: int
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The most similar vectors, nearest first; equal ones by their row."""
    n, m = similarity.shape
    if count < m:
        candidates = np.sort(np.argpartition(similarity, m - count, axis=1)[:, m - count :], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(count), (n, count))
    values = np.take_along_axis(similarity, candidates, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(values, order, axis=1)


def _decided(
    weighted: Float[np.ndarray, "n l"],
    sums: Float[np.ndarray, "n l"],
    votes: Float[np.ndarray, "n l"],
    neighbours: Int[np.ndarray, "n k"],
    near: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " m"],
) -> Votes:
    """Most votes, then the larger sum of similarities, then the label of the nearest vector."""
    rows = np.arange(len(weighted))
    most = weighted == weighted.max(1, keepdims=True)
    best = most & (sums == np.where(most, sums, -np.inf).max(1, keepdims=True))
    tied = best[rows[:, None], labels[neighbours]] & (neighbours >= 0)
    first = tied.argmax(1)
    winner = np.where(tied.any(1), labels[neighbours[rows, first]], 0)
    scores = sums[rows, winner] / np.maximum(votes[rows, winner], 1)
    shares = weighted / np.where(weighted.sum(1, keepdims=True) > 0, weighted.sum(1, keepdims=True), 1)
    shares[rows, winner] += np.where(most.sum(1) > 1, _WINS, 0)
    shares[~(neighbours >= 0).any(1), 0] = 1
    shares /= shares.sum(1, keepdims=True)
    return Votes(
        winner.astype(np.int64),
        scores.astype(np.float32),
        shares.astype(np.float32),
        neighbours.astype(np.int64),
        np.where(neighbours >= 0, near, 0).astype(np.float32),
        np.where(neighbours[:, 0] >= 0, near[:, 0], -1).astype(np.float32),
    )


def _by_class(similarity: Float[np.ndarray, "n m"], labels: Int[np.ndarray, " m"], n_labels: int, k: int) -> Votes:
    n = len(similarity)
    means, nearest = np.full((n, n_labels), -np.inf, np.float32), np.full(n, -np.inf, np.float32)
    of_label = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    for label, rows in of_label.items():
        best = _highest(similarity[:, rows], OF_CLASS)
        present = np.isfinite(best)
        total = np.where(present, best, 0).sum(1)
        means[:, label] = np.where(present.any(1), total / np.maximum(present.sum(1), 1), -np.inf)
        nearest = np.maximum(nearest, best[:, 0])
    known = np.isfinite(nearest)
    # a region without neighbours is background
    means[~known, 0] = 0
    winner = means.argmax(1)
    exponents = np.exp(SHARPNESS * (means - means.max(1, keepdims=True)))
    neighbours, similarities = np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32)
    for label, rows in of_label.items():
        won, width = np.flatnonzero((winner == label) & known), min(k, len(rows))
        places, near = _nearest(similarity[won][:, rows], width)
        present = np.isfinite(near)
        neighbours[won, :width] = np.where(present, rows[places], -1)
        similarities[won, :width] = np.where(present, near, 0)
    return Votes(
        winner,
        np.where(known, means.max(1), 0),
        exponents / exponents.sum(1, keepdims=True),
        neighbours,
        similarities,
        np.where(known, nearest, -1),
    )


def _highest(values: Float[np.ndarray, "n m"], count: int) -> Float[np.ndarray, "n k"]:
    """The highest values of each row, in descending order."""
    rest = values.shape[1] - min(count, values.shape[1])
    return np.sort(np.partition(values, rest, axis=1)[:, rest:], axis=1)[:, ::-1]


class LeftOut(NamedTuple):
    """What a bank says about some of its own vectors, without the vectors of the same picture.

    Attributes:
        labels: the label with most votes, (q,).
        own: the share of the votes for the vector's own label, (q,).
        nearest: similarity to the nearest vector, (q,); -1 if all are of the same picture.
    """

    labels: Int[np.ndarray, " q"]
    own: Float[np.ndarray, " q"]
    nearest: Float[np.ndarray, " q"]


def leave_pictures_out(
    bank: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, " m"],
    pictures: Int[np.ndarray, " m"],
    n_labels: int,
    *,
    k: int = NEIGHBOURS,
    voting: Voting = "plain",
    rows: Int[np.ndarray, " q"] | None = None,
) -> LeftOut:
    """Label vectors of a bank by those of the other pictures.

    Args:
        bank: unit vectors.
        labels, pictures: the label and the number of the picture of each.
        n_labels, k, voting: as for `vote`.
        rows: the vectors to label; all if None.
    """
    rows = np.arange(len(bank)) if rows is None else rows
    found = [LeftOut(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))]
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        allowed = pictures[some, None] != pictures
        votes = vote(bank[some], bank, labels, n_labels, k=k, voting=voting, allowed=allowed)
        own = votes.shares[np.arange(len(some)), labels[some]]
        found.append(LeftOut(votes.labels, own, votes.nearest))
    return LeftOut(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def background_threshold(left_out: LeftOut, labels: Int[np.ndarray, " m"]) -> float:
    """The similarity to the nearest vector below which regions are background: the one with the best mean recall of all labels.

    Args:
        left_out: what the bank says about its own vectors.
        labels: their labels.

    Returns:
        The lowest such threshold; 0 if none improves on it.
    """
    candidates = np.concatenate([[0.0], np.unique(left_out.nearest[left_out.nearest > 0])])
    order = np.argsort(left_out.nearest, kind="stable")
    sorted_nearest = left_out.nearest[order]
    below = np.searchsorted(sorted_nearest, candidates, side="left")
    recall = np.zeros(len(candidates))
    for label in np.unique(labels):
        of_label = (labels == label)[order]
        right = of_label & (left_out.labels[order] == label)
        # vectors below the threshold are background, the others what the votes say
        as_background = np.concatenate([[0], np.cumsum(of_label)]) if label == 0 else np.zeros(len(order) + 1)
        as_voted = right.sum() - np.concatenate([[0], np.cumsum(right)])
        recall += (as_background[below] + as_voted[below]) / of_label.sum()
    best = int(recall.argmax())
    return float(candidates[best]) if recall[best] > recall[0] else 0.0
