"""The dense CRF in plain torch, on any device: a readable version of the compiled code.

`LatticeFilter` approximates sum_q exp(-|f_p - f_q|^2 / 2) x_q for points p with d features f_p. A point lies in a simplex of d + 1 vertices
of the permutohedral lattice. Its value is distributed to them ("splat"), the vertices are blurred along the d + 1 lattice axes, and the
point's new value is interpolated from the same vertices ("slice"). Rounding, ties and the order of the axes are those of the code published
with Krähenbühl and Koltun, NeurIPS 2011: they determine which vertices exist, and therefore the result.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsss.arrays import Float, Int64
from wsss.ops.crf.keys import Basis, basis_of

Kernel = Callable[[Tensor], Tensor]
"""computes K x for rows x, one per label"""


def mean_field(unaries: Sequence[Tensor], kernels: Sequence[tuple[Kernel, float]], iterations: int) -> list[Tensor]:
    """Q <- softmax(-U + sum_m w_m K_m Q), iterated from softmax(-U).

    Args:
        unaries: energies U (labels, pixels) of independent fields that share the kernels.
        kernels: pairs (K, w).
        iterations: number of updates.
    """
    energy, labels = torch.cat(list(unaries)), [len(unary) for unary in unaries]
    logits = -energy
    for step in range(iterations + 1):
        q = torch.cat([torch.softmax(part, 0) for part in logits.split(labels)])
        if step < iterations:
            logits = sum((weight * kernel(q) for kernel, weight in kernels), -energy)
    return list(q.split(labels))


class LatticeFilter:
    """K x for a Gaussian kernel K over n points.

    On CUDA the order of the sums in a scatter-add varies, and therefore the last bits, unless `torch.use_deterministic_algorithms(True)` is
    set.

    Args:
        features: float32; the kernel is exp(-|f_p - f_q|^2 / 2).
        symmetric: with n = filter(1), compute filter(x / sqrt(n)) / sqrt(n) (Krähenbühl and Koltun, ICML 2013) instead of filter(x).

    Raises:
        BadInput: the features exceed the lattice's 16-bit coordinates.
    """

    size: int
    """Number of vertices of the lattice."""

    def __init__(self, features: Float[Tensor, "d n"], symmetric: bool = True) -> None:
        d, n = features.shape
        basis = basis_of(*torch.stack([features.amin(1), features.amax(1)]).cpu().numpy())
        key, self._weight = simplices(features, basis)
        every = key.reshape(-1)
        if n % 4:
            # the published code processes four points at a time and pads with the feature vector 0, whose vertices
            # have no value of their own, but pass on those of their neighbours
            every = torch.cat([every, simplices(features.new_zeros(d, 1), basis)[0].reshape(-1)])
        known, number = torch.unique(every, return_inverse=True)
        self.size = len(known)
        self._vertex = number[: key.numel()].reshape(key.shape)
        # missing neighbours are the row after the last, which stays 0
        nowhere = known.new_full((1,), self.size)
        self._neighbours = []
        for step in basis.step.tolist():
            wanted = torch.stack([known + step, known - step])
            place = torch.searchsorted(known, wanted).clamp_(max=self.size - 1)
            found = torch.where(known[place] == wanted, place, nowhere)
            self._neighbours.append(torch.cat([found, nowhere.expand(2, 1)], 1))
        self._alpha, self._norm = 1 / (1 + 2.0**-d), features.new_ones(n)
        if symmetric:
            self._norm = (self(features.new_ones(1, n))[0] + 1e-20).rsqrt()

    def __call__(self, x: Float[Tensor, "c n"]) -> Float[Tensor, "c n"]:
        """Filter each of c channels."""
        rows = (x * self._norm).T
        value = x.new_zeros(self.size + 1, len(x))
        for vertex, weight in zip(self._vertex, self._weight, strict=True):
            value.index_add_(0, vertex, weight[:, None] * rows)
        for before, after in self._neighbours:
            value = value + 0.5 * (value[before] + value[after])
        rows = torch.zeros_like(rows)
        for vertex, weight in zip(self._vertex, self._weight, strict=True):
            rows = rows + weight[:, None] * value[vertex]
        return rows.T * (self._alpha * self._norm)


def simplices(features: Float[Tensor, "d n"], basis: Basis) -> tuple[Int64[Tensor, "d+1 n"], Float[Tensor, "d+1 n"]]:
    """Keys of the d + 1 vertices around each point, and its barycentric weights; rows are vertices."""
    d, n = features.shape
    step = torch.from_numpy(basis.step).to(features.device)
    # embed in d + 1 coordinates that sum to 0
    c = features * torch.from_numpy(basis.scale).to(features.device)[:, None]
    total, coordinates = features.new_zeros(n), []
    for j in range(d, 0, -1):
        coordinates.append(total - j * c[j - 1])
        total = total + c[j - 1]
    elevated = torch.stack([total, *reversed(coordinates)])
    # the nearest multiples of d + 1 are a vertex if their sum is 0; otherwise the ranks of the distances lead to one
    inverse = float(1 / torch.tensor(d + 1, dtype=torch.float32))
    nearest = torch.round(elevated * inverse)
    offset = elevated - nearest * (d + 1)
    rank = nearest.sum(0).to(torch.int64).repeat(d + 1, 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = offset[i] < offset[j]
            rank[i] += behind
            rank[j] += ~behind
    wrap = (rank < 0).to(torch.int64) - (rank > d).to(torch.int64)
    rank += wrap * (d + 1)
    nearest += wrap
    # the ranks also order the simplex: from that vertex, a step back along the axis with the last rank leads to the next
    # vertex, and so on; the weights are differences of neighbours in this order
    offset = (elevated - nearest * (d + 1)) * inverse
    by_rank = torch.empty_like(offset).scatter_(0, rank, offset)
    step_by_rank = torch.empty_like(rank).scatter_(0, rank, step[:, None].expand(-1, n).contiguous())
    first = (nearest.to(torch.int64) * step[:, None]).sum(0, keepdim=True)
    key = torch.cat([first, first - step_by_rank[1:].flip(0).cumsum(0)])
    falling = by_rank.flip(0)
    weight = torch.cat([falling[:1] + (1 - by_rank[:1]), falling[1:] - falling[:-1]])
    return key, weight
