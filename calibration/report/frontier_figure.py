"""This figure draws accuracy against calibration error: every λ, the parents, λ* and the frontier."""

from collections.abc import Iterator
from typing import Any

import altair as alt

from calibration.catalogue import answers
from calibration.frontier.frontier import Frontier
from calibration.frontier.types import FrontierPoint, Value
from calibration.report.controls import OF_STOP
from calibration.report.data import chart_data
from calibration.report.facts import Cell, Facts
from calibration.report.style import NEUTRAL, ROLES, lam_colour, number, role_shape

_COLUMNS = (
    *("task", "lambda", "lam", "point", "role", "label", "x", "x_low", "x_high", "y", "y_low", "y_high"),
    *("member", "chosen", "marked", "below", "documents", "membership", "interval"),
)
_LETTER = (0.018, 0.05)  # the width and height of a letter, as fractions of the figure's


def frontier_rows(facts: Facts, title: str, frontier: Frontier) -> Iterator[dict[str, Any]]:
    """Yield one row per λ of a frontier, and one for aligned after temperature scaling if it has the same error."""
    labels = _labels(facts, frontier)
    for point in frontier.points:
        role, chosen = facts.mark_of(point.lam), point.lam == frontier.chosen.lam
        marked = chosen or role != "other λ"
        yield _row(title, point) | {
            "point": facts.stop(point.lam),
            "role": role,
            "label": labels.get(point.lam, ""),
            "member": int(point.on_frontier),
            "chosen": int(chosen),
            "marked": int(marked),
            "below": int(_is_below(facts, point.lam, frontier)),
        }
    if (scaled := _scaled(facts, title, frontier)) is not None:
        accuracy, error = scaled
        yield {
            **{"task": title, "lambda": "1, temperature-scaled", "lam": 1.0, "point": -1, "role": ROLES[3]},
            **{"x": error.plottable, "x_low": error.low, "x_high": error.high, "label": ""},
            **{"y": accuracy.plottable, "y_low": accuracy.low, "y_high": accuracy.high, "member": 0, "chosen": 0},
            **{"marked": 1, "documents": accuracy.n, "membership": None, "interval": ""},
        }


def frontier_chart(facts: Facts, rows: list[dict[str, Any]], follows: bool = False) -> alt.LayerChart:
    """Draw frontiers.

    Args:
        facts: the run.
        rows: what `frontier_rows` yields for one title or for several.
        follows: whether the λ of the slider is marked.
    """
    x = alt.X("x:Q", title=f"{answers()[facts.error].title}, 0 to 1 (lower is better)", scale=alt.Scale(zero=False))
    y = alt.Y("y:Q", title="accuracy, share of documents (higher is better)", scale=alt.Scale(zero=False))
    colour, explained = lam_colour(facts.every_lam), lam_colour(facts.every_lam, legend=True)
    tooltip = [
        alt.Tooltip("lambda:N", title="λ"),
        alt.Tooltip("y:Q", title="accuracy", format=".4f"),
        alt.Tooltip("x:Q", title="error", format=".4f"),
        alt.Tooltip("interval:N", title="95 %"),
        alt.Tooltip("membership:Q", title="on the frontier in", format=".0%"),
        alt.Tooltip("documents:Q", title="documents", format="d"),
    ]
    base = alt.Chart()
    path = base.transform_filter("datum.role !== 'aligned, temperature-scaled'")
    front = base.transform_filter("datum.member === 1")
    crosses = [_cross(base.transform_filter("datum.marked === 1"), colour, 0.75)]
    if follows:
        crosses.append(_cross(base.transform_filter(OF_STOP), colour, 1.0))
    points = base.encode(x=x, y=y, color=colour, shape=role_shape(legend=True), tooltip=tooltip)
    label = base.transform_filter("datum.label && !datum.below").mark_text(dx=8, dy=-9, align="left", fontSize=11)
    name = base.transform_filter("datum.label && datum.below").mark_text(dx=8, dy=15, align="left", fontSize=11)
    along = path.mark_line(color=NEUTRAL, strokeWidth=1, opacity=0.7).encode(x=x, y=y, order="lam:Q")
    layers = [
        *([] if facts.coordinates else [along]),  # points of several coordinates have no order
        front.mark_line(color=NEUTRAL, strokeWidth=3, opacity=0.55, interpolate="step-after").encode(
            x=x, y=y, order="x:Q"
        ),
        *[mark for cross in crosses for mark in cross],
        points.transform_filter("datum.member === 0").mark_point(size=55, filled=False, strokeWidth=1.8, opacity=1),
        points.transform_filter("datum.member === 1")
        .mark_point(size=110, filled=True, opacity=1)
        .encode(color=explained),
        base.transform_filter("datum.chosen === 1").mark_point(size=330, color=NEUTRAL, strokeWidth=2).encode(x=x, y=y),
        label.encode(x=x, y=y, text="label:N"),
        name.encode(x=x, y=y, text="label:N"),
    ]
    if follows:
        halo = base.transform_filter(OF_STOP).mark_point(size=420, strokeWidth=1, strokeDash=[3, 2], color=NEUTRAL)
        layers.append(halo.encode(x=x, y=y))
    # Hollow points have their colour on the stroke: one legend for hollow and filled points could not be a gradient.
    legend = alt.LegendResolveMap(color="independent")
    return alt.LayerChart(layer=layers, data=chart_data(rows, _COLUMNS), resolve=alt.Resolve(legend=legend))


def _labels(facts: Facts, frontier: Frontier) -> dict[str, str]:
    """Return the labels by λ; parents and λ* have one, then the frontier and the rest where labels do not overlap."""
    words = {lam: name if facts.coordinates else f"{lam} {name}" for name, lam in facts.parents.items()}
    star = frontier.chosen.lam
    words[star] = f"{words.get(star, star)} λ*"
    points = sorted(frontier.points, key=lambda point: (point.lam not in words, not point.on_frontier))
    errors, accuracies = [point.error for point in points], [point.accuracy for point in points]
    width, height = _span(errors), _span(accuracies)
    kept: dict[str, tuple[float, float, float]] = {}  # a label's left, right and bottom, as fractions of the figure
    for point in points:
        label = words.get(point.lam, point.lam)
        left, bottom = point.error.value / width, point.accuracy.value / height
        bottom -= 2 * _LETTER[1] if _is_below(facts, point.lam, frontier) else 0.0
        right = left + _LETTER[0] * (len(label) + 1)
        apart = all(
            left > other_right or right < other_left or abs(bottom - other_bottom) > _LETTER[1]
            for other_left, other_right, other_bottom in kept.values()
        )
        if apart or point.lam in words:
            kept[point.lam] = left, right, bottom
    return {lam: words.get(lam, lam) for lam in kept}


def _is_below(facts: Facts, lam: str, frontier: Frontier) -> bool:
    """Tell whether a label is under its point, as those of aligned and of λ* are: above, they would cover the next λs."""
    return lam != facts.parents["base"] and lam in (facts.parents.get("aligned"), frontier.chosen.lam)


def _span(values: list[Value]) -> float:
    ends = [end for one in values for end in (one.value, one.low, one.high) if end is not None]
    return (max(ends) - min(ends)) or 1.0


def _cross(base: alt.Chart, colour: alt.Color | alt.ColorValue, opacity: float) -> tuple[alt.Chart, alt.Chart]:
    across = base.mark_rule(strokeWidth=1.4, opacity=opacity).encode(x="x_low:Q", x2="x_high:Q", y="y:Q", color=colour)
    up = base.mark_rule(strokeWidth=1.4, opacity=opacity).encode(x="x:Q", y="y_low:Q", y2="y_high:Q", color=colour)
    return across, up


def _row(title: str, point: FrontierPoint) -> dict[str, Any]:
    accuracy, error = point.accuracy, point.error
    ends = [end for end in (accuracy.low, accuracy.high, error.low, error.high) if end is not None]
    interval = "accuracy {:.3f}–{:.3f}, error {:.3f}–{:.3f}".format(*ends) if len(ends) == 4 else ""
    return {
        **{"task": title, "lambda": point.lam, "lam": number(point.lam), "documents": point.documents},
        **{"x": error.value, "x_low": error.low, "x_high": error.high},
        **{"y": accuracy.value, "y_low": accuracy.low, "y_high": accuracy.high},
        **{"membership": point.membership, "interval": interval},
    }


def _scaled(facts: Facts, title: str, frontier: Frontier) -> tuple[Cell, Cell] | None:
    """Return a task's accuracy and error for aligned after temperature scaling, or None if there are none."""
    task = next((task for task in facts.tasks if task.name == title and task.frontier is frontier), None)
    aligned = facts.parents.get("aligned")
    if task is None or aligned is None:
        return None
    accuracy, error = task.cell(aligned, facts.accuracy), task.cell(aligned, f"{facts.error}_scaled")
    return None if accuracy.plottable is None or error.plottable is None else (accuracy, error)
