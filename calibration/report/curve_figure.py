"""A curve shows one metric along λ, with its 95 % band and the cheap alternative: aligned after temperature scaling."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.report.controls import OF_STOP
from calibration.report.data import chart_data
from calibration.report.facts import Cell, Facts, Outcomes, TaskFacts
from calibration.report.measures import Measure
from calibration.report.style import NEUTRAL, OTHER_COLOUR, lam_axis, lam_colour, number, role_shape
from calibration.report.vega import Spec, end, mark, nominal, quantitative, together_in

_COLUMNS = ("task", "lambda", "lam", "point", "role", "value", "low", "high", "scaled", "floor", "documents", "apart")


def curve_rows(facts: Facts, task: TaskFacts, measure: Measure) -> Iterator[dict[str, Any]]:
    """Yield one row per finished λ at which the metric is a finite number; `scaled` is the same in all of them.

    A λ that is compared with none is `apart`: no line joins it to others.
    """
    aligned = facts.parents.get("aligned")
    if aligned in task.apart:
        aligned = None
    scaled = task.cell(aligned, measure.scaled).plottable if aligned and measure.scaled else None
    for lam in task.lambdas:
        cell = task.cell(lam, measure.metric)
        if cell.plottable is not None:
            floor = task.cell(lam, measure.floor).plottable if measure.floor else None
            apart = int(lam in task.apart)
            yield _row(facts, task.name, lam, cell) | {"scaled": scaled, "floor": floor, "apart": apart}


def outcome_curve_rows(facts: Facts, outcomes: Outcomes, metric: str) -> Iterator[dict[str, Any]]:
    """Yield one row per λ at which a metric of lm-eval is a finite number; it has no interval."""
    for lam, cell in outcomes.cells.get(metric, {}).items():
        if cell.plottable is not None:
            yield _row(facts, outcomes.name, lam, cell) | {"scaled": None}


def _row(facts: Facts, task: str, lam: str, cell: Cell) -> dict[str, Any]:
    return {
        **{"task": task, "lambda": lam, "lam": number(lam), "point": facts.stop(lam), "role": facts.mark_of(lam)},
        **{"value": cell.plottable, "low": cell.low, "high": cell.high, "documents": cell.n},
    }


def curve_chart(facts: Facts, rows: Sequence[dict[str, Any]], measure: Measure, follows: bool = False) -> Spec:
    """Draw a metric along λ.

    Args:
        facts: the run.
        rows: what `curve_rows` or `outcome_curve_rows` yields.
        measure: the metric.
        follows: whether the λ of the slider is marked.
    """
    x = lam_axis(facts.every_lam, facts.parents)

    def y(field: str, **properties: Any) -> Spec:
        return quantitative(field, title=measure.axis, scale={"zero": False}, **properties)

    together = together_in(rows)
    layers = [mark("line", {"x": x, "y": y("value")}, together, color=NEUTRAL, strokeWidth=1.5)]
    if any(row["low"] is not None for row in rows):  # Vega warns of a channel without any number
        band = {"x": x, "y": y("low"), "y2": end("high")}
        layers.insert(0, mark("area", band, together, opacity=0.22, color=NEUTRAL))
    if follows:
        layers.append(mark("rule", {"x": x}, [OF_STOP], color=NEUTRAL, strokeDash=[2, 3], strokeWidth=1.2))
    if any(row["scaled"] is not None for row in rows):
        layers += _scaled(y("scaled", aggregate="mean"))
    if any(row.get("floor") is not None for row in rows):
        layers += _floor(x, y("floor"), together)
    channels = {
        **{"x": x, "y": y("value"), "color": lam_colour(facts.every_lam), "shape": role_shape()},
        "tooltip": [
            nominal("lambda", title="λ"),
            quantitative("value", title=measure.title, format=measure.form),
            quantitative("low", title="95 % from", format=measure.form),
            quantitative("high", title="to", format=measure.form),
            quantitative("documents", title="documents", format="d"),
        ],
    }
    dots = mark("point", channels, together, filled=True, opacity=1, size=42)
    parents = mark("point", channels, [*together, "datum.role !== 'other λ'"], filled=True, opacity=1, size=110)
    hollow = [mark("point", channels, ["datum.apart"], filled=False, opacity=1, size=60)] if together else []
    return {"data": chart_data(rows, _COLUMNS), "layer": [*layers, dots, parents, *hollow]}


def _scaled(level: Spec) -> list[Spec]:
    """Draw the level of aligned after temperature scaling, with its name at the right end."""
    words: Spec = {"text": "aligned, T-scaled", "align": "right", "dy": -6, "fontSize": 10}
    return [
        mark("rule", {"y": level}, color=OTHER_COLOUR, strokeDash=[6, 3], strokeWidth=1.6),
        mark("text", {"x": quantitative("lam", aggregate="max"), "y": level}, color=OTHER_COLOUR, **words),
    ]


def _floor(x: Spec, noise: Spec, together: Sequence[str]) -> list[Spec]:
    """Draw what noise alone gives where `together` holds, with its name at the right end."""
    last: list[Spec | str] = [
        *together,
        {"joinaggregate": [{"op": "max", "field": "lam", "as": "most"}], "groupby": ["task"]},
        "datum.lam === datum.most",
    ]
    words: Spec = {"text": "noise alone", "align": "right", "dy": 9, "fontSize": 10}
    return [
        mark("line", {"x": x, "y": noise}, together, color=NEUTRAL, strokeWidth=1.4, strokeDash=[1, 3]),
        mark("text", {"x": quantitative("lam"), "y": noise}, last, color=NEUTRAL, **words),
    ]
