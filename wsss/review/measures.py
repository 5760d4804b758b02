"""What looks wrong with a picture's tags and mask, measured in the background, so that a review can begin with it.

The suspicion of a picture, in [0, 1], is 1 - (1 - w_1)(1 - w_2)..., over what was found: a tagged class without a pixel, a class in the mask
without a tag, a mask that covers almost everything or almost nothing, no tag at all. If the run has `tags-review.csv`, its suspicion of the
tags replaces this score. The uncertainty is the mean of 1 - |2 m - 1| over the highest map m at each pixel; without maps, the share of unsure
pixels (255) in the mask.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsss.arrays import Bool, Float
from wsss.data.files import read_mask
from wsss.data.images import Images
from wsss.data.labels import IGNORE
from wsss.data.lists import without_suffix
from wsss.data.rows import csv_rows
from wsss.data.tables import plain_text
from wsss.errors import BadInput, Unreadable, reading
from wsss.review.material import Material
from wsss.storage import read_packed, write_packed

# Written by the health check of a run; the columns after `image` hold one entry per suspicious tag, separated by `;`
SUSPICIOUS_TAGS = "tags-review.csv"
_COLUMNS = ("image", "suspicious", "why", "score")
MEASURES = "measures.json.gz"
# Seconds between two writings of the measures
_SAVE_EVERY = 30.0
# Shares of the picture outside which a mask is remarkable, and the weight of each finding
_ALMOST_ALL, _ALMOST_NOTHING = 0.9, 0.005
_NO_MAPS = np.zeros((0, 1, 1), np.float32)
_WEIGHTS = {"missing": 0.7, "untagged": 0.7, "all": 0.6, "nothing": 0.6, "no tag": 0.5}


@dataclasses.dataclass(frozen=True)
class Doubt:
    """A line of `tags-review.csv`: suspicion in [0, 1], and why."""

    suspicion: float
    reason: str


class Measures:
    """Measures of all pictures, made by one thread, in the order of the pictures.

    Args:
        material: pictures and maps.
        mask_path: function that gives a picture's current mask, None if it has none.
        doubts: doubts about tags by the name of the picture.
        cache: folder in which measures are stored.
    """

    def __init__(
        self, material: Material, mask_path: Callable[[int], Path | None], doubts: dict[str, Doubt], cache: Path
    ) -> None:
        self.material, self.images, self.mask_path = material, material.images, mask_path
        self.doubts, self.cache = doubts, cache
        n = len(self.images)
        # share of each label, then of unsure pixels; NaN where there is no mask, or it is not measured yet
        self.shares: Float[np.ndarray, "n l"] = np.full((n, self.images.n_labels + 1), np.nan, np.float32)
        self.uncertainty: Float[np.ndarray, " n"] = np.full(n, np.nan, np.float32)
        self.measured = 0
        self.failures: dict[int, str] = {}
        self._stop, self._ended = threading.Event(), threading.Event()

    def start(self, wait: float) -> None:
        """Start measuring, and wait at most this number of seconds for the end."""
        threading.Thread(target=self._run, name="measures", daemon=True).start()
        self._ended.wait(wait)

    def stop(self) -> None:
        """Stop measuring, and wait until what was measured is stored."""
        self._stop.set()
        self._ended.wait()

    def update(self, index: int) -> None:
        """Measure the mask of a picture again, after it was corrected."""
        path = self.mask_path(index)
        if path is not None:
            self.shares[index] = self._shares(path)

    def suspicion(self, tags: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
        """The suspicion of each picture with these tags."""
        if self.doubts:
            found = [self.doubts.get(name) for name in self.images.names]
            return np.array([doubt.suspicion if doubt else 0.0 for doubt in found], np.float32)
        with np.errstate(invalid="ignore"):
            classes = self.shares[:, 1:-1]
            covered = classes.sum(1)
            clear = 1 - _WEIGHTS["missing"] * (tags & (classes == 0))
            clear *= 1 - _WEIGHTS["untagged"] * (~tags & (classes > 0))
            calm = clear.prod(1)
            calm *= 1 - _WEIGHTS["all"] * (covered > _ALMOST_ALL)
            calm *= 1 - _WEIGHTS["nothing"] * ((covered < _ALMOST_NOTHING) & tags.any(1))
            calm *= 1 - _WEIGHTS["no tag"] * ~tags.any(1)
        return (1 - calm).astype(np.float32)

    def reasons(self, index: int, tags: Bool[np.ndarray, " c"]) -> list[str]:
        """What looks wrong with a picture, as short texts."""
        shares, names = self.shares[index], self.images.class_names
        found = [doubt.reason] if (doubt := self.doubts.get(self.images.names[index])) and doubt.reason else []
        if index in self.failures:
            found.append(self.failures[index])
        if not tags.any():
            found.append("no tag")
        if np.isnan(shares[0]):
            return found
        classes = shares[1:-1]
        found += [f"{names[cls]}: tagged, but not in the mask" for cls in np.flatnonzero(tags & (classes == 0))]
        untagged = np.flatnonzero(~tags & (classes > 0))
        found += [f"{names[cls]}: {classes[cls]:.0%} of the picture, but not tagged" for cls in untagged]
        if classes.sum() > _ALMOST_ALL:
            found.append(f"the mask covers {classes.sum():.0%} of the picture")
        elif 0 < classes.sum() < _ALMOST_NOTHING:
            found.append(f"the mask covers {classes.sum():.1%} of the picture")
        return found

    def _run(self) -> None:
        try:
            self._measure_all()
        finally:
            self._ended.set()

    def _measure_all(self) -> None:
        known = self._stored()
        saved, fresh = time.monotonic(), False
        stored: dict[str, _Stored] = {}
        for index, name in enumerate(self.images.names):
            if self._stop.is_set():
                break
            stamp = self._stamp(index)
            if name not in known or known[name].stamp != stamp:
                known[name], fresh = _Stored(stamp, *self._measure(index)), True
            stored[name] = known[name]
            self.uncertainty[index], self.shares[index] = known[name].uncertainty, known[name].shares
            self.measured = index + 1
            if fresh and time.monotonic() - saved > _SAVE_EVERY:
                self._save(stored)
                saved, fresh = time.monotonic(), False
        if fresh:
            self._save(stored)

    def _measure(self, index: int) -> tuple[float, list[float]]:
        missing = [float("nan")] * self.shares.shape[1]
        try:
            path = self.mask_path(index)
            shares = missing if path is None else self._shares(path)
            classes, maps = self.material.maps(index) if self.material.cams else ((), _NO_MAPS)
        except BadInput as error:
            self.failures[index] = str(error)
            return float("nan"), missing
        if len(classes):
            return float((1 - np.abs(2 * maps.max(axis=0) - 1)).mean()), shares
        return shares[-1], shares

    def _shares(self, path: Path) -> list[float]:
        mask = read_mask(path)
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1) / max(mask.size, 1)
        return [*counts[: self.images.n_labels].tolist(), float(counts[IGNORE])]

    def _stamp(self, index: int) -> str:
        name = self.images.names[index]
        cams = self.material.cams
        maps = [] if cams is None else [cams / f"{name}.npz", cams / f"{name}.npy"]
        mask = self.mask_path(index)
        files = [path for path in (mask, *maps) if path is not None and path.is_file()]
        return " ".join([str(self.images.n_labels), *(f"{path.parent}:{path.stat().st_mtime_ns}" for path in files)])

    def _stored(self) -> dict[str, "_Stored"]:
        """The measures of an earlier review, as far as they can be used."""
        path = self.cache / MEASURES
        try:
            content = read_packed(path, "measures") if path.exists() else {}
            return {
                str(name): _Stored(str(stamp), float(uncertainty), [float(share) for share in shares])
                for name, (stamp, uncertainty, shares) in content.items()
                if len(shares) == self.shares.shape[1]
            }
        except (BadInput, AttributeError, TypeError, ValueError):  # only a cache
            return {}

    def _save(self, stored: dict[str, "_Stored"]) -> None:
        write_packed(self.cache / MEASURES, {name: dataclasses.astuple(one) for name, one in stored.items()})


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The measures of a picture, and a stamp that changes with its files."""

    stamp: str
    uncertainty: float
    shares: list[float]


def read_doubts(path: Path, images: Images) -> dict[str, Doubt]:
    """The doubts about tags in `tags-review.csv`, by the name of the picture.

    Raises:
        BadInput: the table is damaged, or lacks the columns that the health check of a run writes.
    """
    found: dict[str, Doubt] = {}
    known = set(images.names)
    for line, cells in csv_rows(path, "a table of suspicious tags"):
        where, do = f"{path}, line {line}", "Move the table elsewhere; the run writes it again."
        if missing := [name for name in _COLUMNS if name not in cells]:
            raise BadInput(path, f"no column {missing[0]!r}", f"the columns {', '.join(_COLUMNS)}", do)
        name = without_suffix(plain_text(cells["image"]))
        tags, why, scores = (plain_text(cells[key]).split(";") for key in _COLUMNS[1:])
        if tags == [""] or name not in known:
            continue
        if not len(tags) == len(why) == len(scores):
            raise BadInput(where, f"{len(tags)} tags, {len(why)} reasons, {len(scores)} scores", "one of each", do)
        with reading(where, "scores from 0 to 1, separated by `;`", do):
            values = [float(score) for score in scores]
            if not all(0 <= value <= 1 for value in values):
                raise Unreadable(f"the scores {cells['score']:.40}")
        parts = [f"{tag}: {reason} ({value:.2f})" for tag, reason, value in zip(tags, why, values, strict=True)]
        found[name] = Doubt(max(values), "; ".join(parts))
    return found
