"""Charts of the pages, as coordinates for their templates: losses of trainings, scores at each threshold."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from wsss.stages.records import Score

CURVE_POINTS = 500
# Distances between the ticks of an axis, times a power of ten
_STEPS = [1, 2, 2.5, 5, 10]


class Line(NamedTuple):
    """A curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def chart(
    lines: Sequence[Line], x_name: str, y_name: str, marks: Sequence[tuple[float, float]] = ()
) -> dict[str, object]:
    """Coordinates of a chart's curves, ticks and marks, in the units of its view box."""
    width, height, left, right, top, bottom = 640, 260, 78, 14, 12, 40
    low_x, high_x = _range([x for line in lines for x in line.x])
    slack = 1e-9 * (high_x - low_x)
    ticks_x = [
        x for x in MaxNLocator(8, steps=_STEPS).tick_values(low_x, high_x) if low_x - slack <= x <= high_x + slack
    ]
    ticks_y = MaxNLocator(6, steps=_STEPS).tick_values(*_range([y for line in lines for y in line.y]))
    low_y, high_y = float(ticks_y[0]), float(ticks_y[-1])

    def at_x(x: float) -> float:
        return round(left + (x - low_x) / (high_x - low_x) * (width - left - right), 1)

    def at_y(y: float) -> float:
        return round(height - bottom - (y - low_y) / (high_y - low_y) * (height - top - bottom), 1)

    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "top": top,
        "bottom": height - bottom,
        "x_name": x_name,
        "y_name": y_name,
        "x_ticks": [(at_x(x), f"{x:g}") for x in ticks_x],
        "y_ticks": [(at_y(y), f"{y:g}") for y in ticks_y],
        "lines": [(line.name, " ".join(f"{at_x(x)},{at_y(y)}" for x, y in zip(line.x, line.y))) for line in lines],
        "marks": [(at_x(x), at_y(y)) for x, y in marks],
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low < high:
        return low, high
    return low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)


def threshold_chart(scored: Sequence[Score]) -> dict[str, object] | None:
    lines, marks, numbers, texts = [], [], [], []
    for number, score in enumerate(scored):
        curve = score.content["curve"]
        known = [(x, 100 * y) for x, y in zip(curve["thresholds"], curve["miou"]) if y is not None] if curve else []
        if not known:
            continue
        best = score.protocol["threshold"]
        lines.append(Line(score.short, *zip(*known)))
        marks.append(next(point for point in known if point[0] == best))
        numbers.append(number)
        near = [x for x, y in known if y >= marks[-1][1] - 1]
        texts.append(
            f"{score.short}: best at {best:g} ({marks[-1][1]:.1f} %), within one point of it from {near[0]:g} to {near[-1]:g}"
        )
    if not lines:
        return None
    return {"chart": chart(lines, "threshold", "mIoU %", marks), "numbers": numbers, "texts": texts}


def loss_charts(name: str, history: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """Losses and learning rate of a training; neighbouring updates are averaged if there are many.

    Args:
        name: name of the training's stage.
        history: step, learning rate and losses of each update, as `wsss.stages.train` records them.
    """
    if len(history) < 2:  # a single point is no curve
        return {"name": name, "steps": len(history), "every": 1, "charts": []}
    every = -(-len(history) // CURVE_POINTS)
    parts = [history[start : start + every] for start in range(0, len(history), every)]

    def line(term: str) -> Line:
        known = [[entry for entry in part if term in entry] for part in parts]
        means = [[float(np.mean([entry[key] for entry in part])) for part in known if part] for key in ("step", term)]
        return Line(term, *means)

    terms = [term for term in dict.fromkeys(key for entry in history for key in entry) if term not in ("step", "lr")]
    charts = [chart([line(term) for term in terms], "update", "loss"), chart([line("lr")], "update", "learning rate")]
    return {"name": name, "steps": len(history), "every": every, "charts": charts}
