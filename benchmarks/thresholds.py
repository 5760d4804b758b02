"""How much mIoU a threshold that is chosen without true masks costs against the best one.

    python benchmarks/thresholds.py RUN...

Each RUN is a folder with maps and their scores at many thresholds, as `wsss localize` and `wsss evaluate --thresholds` or `wsss run` write
them. For each kind of maps in it, the regret in points of mIoU is printed for a fixed published value, for the two rules of `wsss`, and for
rules that were tried too. The regret between two scored thresholds is interpolated.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss.data.files import read_cams
from wsss.ops.thresholds import BINS, exponent_at, highest_values, humps, otsu, otsu_of_roots
from wsss.stages.records import Score, read_scores, read_stages

# IRNet's threshold on VOC, and the exponent of CLIP-ES
FIXED = {"constant": 0.15, "power": 1.0}
_MIDDLES = (np.arange(BINS) + 0.5) / BINS


def maximum_entropy(counts: np.ndarray) -> float:
    """The threshold that maximises the entropy of the values below plus that of the values above (Kapur et al., CVGIP 1985)."""
    shares = counts / counts.sum()
    below, entropies = shares.cumsum()[:-1], (-shares * np.log(np.maximum(shares, 1e-300))).cumsum()
    valid = (below > 0) & (below < 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log(below * (1 - below)) + entropies[:-1] / below + (entropies[-1] - entropies[:-1]) / (1 - below)
    return float(np.where(valid, both, -np.inf).argmax() + 1) / BINS


def minimum_cross_entropy(counts: np.ndarray) -> float:
    """The threshold after which two levels differ least from the values in cross entropy (Li and Lee, Pattern Recognition 1993)."""
    shares = counts / counts.sum()
    weights, sums = shares.cumsum()[:-1], (shares * _MIDDLES).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        below = sums[:-1] * np.log(sums[:-1] / weights)
        above = (sums[-1] - sums[:-1]) * np.log((sums[-1] - sums[:-1]) / (1 - weights))
    return float(np.nan_to_num(below + above, nan=-np.inf, neginf=-np.inf).argmax() + 1) / BINS


def mean(counts: np.ndarray) -> float:
    """The mean value."""
    return float((counts * _MIDDLES).sum() / counts.sum())


RULES: dict[str, Callable[[np.ndarray], float]] = {
    "otsu": otsu,
    "otsu_sqrt": otsu_of_roots,
    "max entropy": maximum_entropy,
    "min cross entropy": minimum_cross_entropy,
    "mean": mean,
}


class Measured(NamedTuple):
    """The maps of a run.

    Attributes:
        name: run, and folder of the maps if there are several.
        by_default: the rule that `wsss` uses for maps of this kind.
        pictures: number of scored pictures.
        best, miou: the best threshold or exponent, and its mIoU in per cent.
        chosen: threshold or exponent of each rule.
        regrets: mIoU at the best value less mIoU at the chosen one, in points.
        separation: see `wsss.ops.thresholds.Humps`.
    """

    name: str
    by_default: str
    pictures: int
    best: float
    miou: float
    chosen: dict[str, float]
    regrets: dict[str, float]
    separation: float | None


def measured(name: str, score: Score, by_default: str) -> Measured:
    """The regrets of all rules on the maps that were scored."""
    assert score.source is not None
    counts = np.zeros(BINS, np.int64)
    for path in sorted(score.source.folder.glob("*.npz")):
        counts += highest_values(read_cams(path)[1])
    background, curve = str(score.protocol["background"]), score.content["curve"]
    values, miou = np.array(curve["thresholds"]), 100 * np.array(curve["miou"], float)
    chosen = {rule: of(counts) for rule, of in RULES.items()}
    if background == "power":
        chosen = {rule: exponent_at(threshold) for rule, threshold in chosen.items()}
    chosen = {"fixed": FIXED[background], **chosen}
    regrets = {rule: float(miou.max() - np.interp(value, values, miou)) for rule, value in chosen.items()}
    best = float(values[miou.argmax()])
    return Measured(name, by_default, score.images, best, float(miou.max()), chosen, regrets, humps(counts).separation)


def of_run(folder: Path) -> list[Measured]:
    """All maps of a run that were scored at several thresholds."""
    found = []
    for score in read_scores(read_stages(folder)):
        curve = score.content["curve"]
        if curve and len(curve["thresholds"]) > 1 and score.source is not None:
            walked = score.source.kind == "walk"
            rule = "otsu_sqrt" if walked or score.protocol["background"] == "power" else "otsu"
            found.append(measured(f"{folder.name}{', walked' if walked else ''}", score, rule))
    return found


def main() -> None:
    """Print a table in Markdown."""
    rows = [one for folder in map(Path, sys.argv[1:]) for one in of_run(folder)]
    if not rows:
        sys.exit(__doc__)
    rules = ("fixed", *RULES)
    print("| maps | pictures | best value | mIoU % | default | regret | " + " | ".join(rules) + " | separation |")
    print("|---" * (7 + len(rules)) + "|")
    for one in rows:
        others = " | ".join(f"{one.regrets[rule]:.2f}" for rule in rules)
        print(
            f"| {one.name} | {one.pictures} | {one.best:g} | {one.miou:.1f} | {one.by_default} {one.chosen[one.by_default]:.2f} "
            f"| **{one.regrets[one.by_default]:.2f}** | {others} | {one.separation or 0:.2f} |"
        )
    of_default = [one.regrets[one.by_default] for one in rows]
    totals = [of_default, *([one.regrets[rule] for one in rows] for rule in rules)]
    for what, of in (("mean", np.mean), ("largest", np.max)):
        print(f"| {what} | | | | | " + " | ".join(f"{of(values):.2f}" for values in totals) + " | |")


if __name__ == "__main__":
    main()
