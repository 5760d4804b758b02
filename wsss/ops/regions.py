"""Class-agnostic regions of a picture, which may overlap.

Regions that overlap divide the picture into atoms: sets of pixels that lie in the same regions. A sum over the pixels of every region is
then one pass over the pixels, which gives the sums over the atoms, and a sum of these for each region.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from wsss.arrays import Bool, Float, Float32, Int, Int32, Int64, UInt8
from wsss.errors import BadInput

if TYPE_CHECKING:  # slow to import
    from scipy import sparse


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a picture, in any order.

    Attributes:
        atoms: the atom of each pixel, from 0; each number occurs. Pixels that lie in the same regions may belong to different atoms.
        counts: number of atoms of each region; 0 for an empty region.
        members: the atoms of each region in ascending order, those of the first region first.
        scores: how sure the proposer is of each region, in [0, 1].
        levels: 0 for parts of parts, higher for larger wholes. A proposer without levels gives 0 to all.

    Raises:
        BadInput: the arrays do not fit together.
    """

    atoms: Int32[np.ndarray, "h w"]
    counts: Int64[np.ndarray, " n"]
    members: Int64[np.ndarray, " m"]
    scores: Float32[np.ndarray, " n"]
    levels: UInt8[np.ndarray, " n"]

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem is not None:
            raise BadInput(
                "regions", problem, "regions that consist of atoms of the picture", "Make the regions again."
            )

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of_masks(
        cls,
        masks: Bool[np.ndarray, "n h w"],
        scores: Float[np.ndarray, " n"] | None = None,
        levels: Int[np.ndarray, " n"] | None = None,
    ) -> "Regions":
        """Regions from masks, of score 1 and level 0 unless given."""
        n, height, width = masks.shape
        atoms, areas = np.zeros(height * width, np.int32), np.array([height * width])
        flat = masks.reshape(n, height * width)
        for mask in flat:
            pixels = np.flatnonzero(mask)
            before, new = atoms[pixels], np.arange(len(areas), dtype=np.int32)
            inside = np.bincount(before, minlength=len(areas))
            divided = np.flatnonzero((inside > 0) & (inside < areas))
            new[divided] = len(areas) + np.arange(len(divided))
            areas[divided] -= inside[divided]
            areas = np.append(areas, inside[divided])
            atoms[pixels] = new[before]
        first = np.zeros(len(areas), np.int64)
        first[atoms[::-1]] = np.arange(height * width)[::-1]
        return cls._of_incidence(
            atoms.reshape(height, width),
            flat[:, first],
            np.ones(n) if scores is None else scores,
            np.zeros(n) if levels is None else levels,
        )

    @classmethod
    def of_levels(
        cls, atoms: Int32[np.ndarray, "h w"], levels: Sequence[Int[np.ndarray, " a"]], scores: Float[np.ndarray, " r"]
    ) -> "Regions":
        """Regions of several levels, each of which assigns every atom to one region.

        Args:
            atoms: the atom of each pixel, from 0; each number occurs.
            levels: the region of each atom, for each level; numbers of regions may be missing.
            scores: of all regions by their numbers.
        """
        present = [np.unique(of_atoms) for of_atoms in levels]
        inside = [of_atoms == numbers[:, None] for of_atoms, numbers in zip(levels, present, strict=True)]
        numbered = np.repeat(np.arange(len(levels)), [len(numbers) for numbers in present])
        return cls._of_incidence(atoms, np.concatenate(inside), scores[np.concatenate(present)], numbered)

    @classmethod
    def _of_incidence(cls, atoms: np.ndarray, inside: np.ndarray, scores: np.ndarray, levels: np.ndarray) -> "Regions":
        """Regions from atoms (h, w) and from which regions they belong to, (n, a)."""
        return cls(
            atoms,
            np.count_nonzero(inside, axis=1).astype(np.int64),
            np.nonzero(inside)[1].astype(np.int64),
            scores.astype(np.float32),
            levels.astype(np.uint8),
        )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the picture."""
        height, width = self.atoms.shape
        return height, width

    @functools.cached_property
    def atom_areas(self) -> Int64[np.ndarray, " a"]:
        """Number of pixels of each atom."""
        return np.bincount(self.atoms.ravel()).astype(np.int64)

    @functools.cached_property
    def areas(self) -> Int64[np.ndarray, " n"]:
        """Number of pixels of each region."""
        return self.summed(self.atom_areas[:, None])[:, 0]

    @functools.cached_property
    def of_member(self) -> Int64[np.ndarray, " m"]:
        """The region of each entry of `members`."""
        return np.repeat(np.arange(len(self)), self.counts)

    def incidence(self) -> Bool[np.ndarray, "n a"]:
        """Which atoms each region contains."""
        inside = np.zeros((len(self), len(self.atom_areas)), bool)
        inside[self.of_member, self.members] = True
        return inside

    def masks(self) -> Bool[np.ndarray, "n h w"]:
        """The pixels of each region."""
        return self.incidence()[:, self.atoms]

    def chosen(self, indices: Int[np.ndarray, " k"]) -> "Regions":
        """The regions with these indices, in this order."""
        return Regions._of_incidence(self.atoms, self.incidence()[indices], self.scores[indices], self.levels[indices])

    def without_repeats(self) -> "Regions":
        """The regions without those that consist of the same atoms as an earlier one, which takes over the highest of their scores."""
        starts = np.cumsum(self.counts) - self.counts
        parts = [
            self.members[start : start + count].tobytes() for start, count in zip(starts, self.counts, strict=True)
        ]
        first = {part: index for index, part in reversed(list(enumerate(parts)))}
        highest = self.scores.copy()
        np.maximum.at(highest, [first[part] for part in parts], self.scores)
        return dataclasses.replace(self, scores=highest).chosen(np.array(sorted(first.values()), np.int64))

    def sums(self, maps: Float[np.ndarray, "k h w"]) -> Float[np.ndarray, "n k"]:
        """Sum of each map over each region, in float64."""
        flat, count = self.atoms.ravel(), len(self.atom_areas)
        sums = [np.bincount(flat, one.ravel(), count) for one in maps]
        return self.summed(np.stack(sums, axis=1) if sums else np.zeros((count, 0)))

    def overlaps(
        self, labels: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], count: int
    ) -> Int64[np.ndarray, "n {count}"]:
        """Number of pixels of each region that have each label.

        Args:
            labels: labels of the pixels, not negative.
            count: number of labels; higher ones are not counted.
        """
        return self.summed(self.atom_labels(labels, count))

    def atom_labels(
        self, labels: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], count: int
    ) -> Int64[np.ndarray, "a {count}"]:
        """As `overlaps`, for the atoms."""
        kinds = max(count, int(labels.max()) + 1)
        pairs = np.bincount(
            (self.atoms.astype(np.int64) * kinds + labels).ravel(), minlength=len(self.atom_areas) * kinds
        )
        return pairs.reshape(-1, kinds)[:, :count]

    def intersections(self) -> Int64[np.ndarray, "n n"]:
        """Number of pixels that two regions share."""
        inside = self.incidence().astype(np.float64)
        return np.rint((inside * self.atom_areas) @ inside.T).astype(np.int64)

    def painted(self, order: Int[np.ndarray, " k"] | None = None) -> Int32[np.ndarray, "h w"]:
        """The region of each pixel where regions are painted over one another, -1 where there is none.

        Args:
            order: indices of the regions to paint, the last one on top; None for all in their order.
        """
        order = np.arange(len(self)) if order is None else np.asarray(order, np.int64)
        place = np.full(len(self), -1)
        place[order] = np.arange(len(order))
        top = np.full(len(self.atom_areas), -1)
        np.maximum.at(top, self.members, place[self.of_member])
        return np.append(order, -1)[top].astype(np.int32)[self.atoms]

    def flattened(
        self, score: float = 0.0, top: Literal["score", "area"] = "score", level: int | None = None
    ) -> Int32[np.ndarray, "h w"]:
        """The region of each pixel, as `painted`, where regions with a lower score are left out.

        Args:
            score: lowest score of a region that is used.
            top: which region is on top: the surest one, or the largest one.
            level: the highest level that is used, on top of the lower ones, since equal regions are only on their lowest level; None: the regions
                of all levels, whatever their level.
        """
        sure = self.scores >= score
        chosen = np.flatnonzero(sure if level is None else sure & (self.levels <= level))
        height = (self.scores if top == "score" else self.areas)[chosen]
        order = np.argsort(height, kind="stable") if level is None else np.lexsort((height, self.levels[chosen]))
        return self.painted(chosen[order])

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Sums of values of the atoms, (a, k), over the atoms of each region: (n, k)."""
        return np.asarray(self._inside(values.dtype) @ values)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Sums of values of the regions, (n, k), over the regions that contain each atom: (a, k)."""
        return np.asarray(self._inside(values.dtype).T @ values)

    def _inside(self, dtype: np.dtype) -> "sparse.csr_array":
        """1 where a region, in rows, contains an atom."""
        from scipy import sparse

        ends = np.concatenate([[0], np.cumsum(self.counts)])
        shape = len(self), len(self.atom_areas)
        return sparse.csr_array((np.ones(len(self.members), dtype), self.members, ends), shape=shape)

    def _problem(self) -> str | None:
        """How the arrays contradict one another; None if they do not."""
        if self.atoms.ndim != 2 or not self.atoms.size:
            return f"a picture of {'x'.join(map(str, self.atoms.shape))}"
        if len(self.scores) != len(self) or len(self.levels) != len(self):
            return f"{len(self)} regions with {len(self.scores)} scores and {len(self.levels)} levels"
        # NaN fails this comparison
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            return f"scores from {self.scores.min()} to {self.scores.max()}"
        least, most = int(self.atoms.min()), int(self.atoms.max())
        if least < 0 or most >= self.atoms.size or not self.atom_areas.all():
            return f"atoms from {least} to {most}, of which some may be missing"
        # counts that are too high are refused before their sum is taken, which could overflow
        if ((self.counts < 0) | (self.counts > len(self.members))).any() or self.counts.sum() != len(self.members):
            return f"{len(self.members)} atoms in regions that have {self.counts.sum()}"
        if len(self.members) and (self.members.min() < 0 or self.members.max() > most):
            return f"atoms from {self.members.min()} to {self.members.max()} in regions, of {most + 1}"
        ascending = (np.diff(self.members) > 0) | (np.diff(self.of_member) > 0)
        return None if ascending.all() else "a region whose atoms are not in ascending order"
