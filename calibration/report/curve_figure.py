"""A curve shows one metric along λ, with its 95 % band and the cheap alternative: aligned after temperature scaling."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from calibration.report.controls import OF_STOP
from calibration.report.data import chart_data
from calibration.report.facts import Cell, Facts, Outcomes, TaskFacts
from calibration.report.measures import Measure
from calibration.report.style import NEUTRAL, OTHER_COLOUR, lam_axis, lam_colour, number, role_shape

_COLUMNS = ("task", "lambda", "lam", "point", "role", "value", "low", "high", "scaled", "floor", "documents")


def curve_rows(facts: Facts, task: TaskFacts, measure: Measure) -> Iterator[dict[str, Any]]:
    """Yield one row per finished λ at which the metric is a finite number; `scaled` is the same in all of them."""
    aligned = facts.parents.get("aligned")
    scaled = task.cell(aligned, measure.scaled).plottable if aligned and measure.scaled else None
    for lam in task.lambdas:
        cell = task.cell(lam, measure.metric)
        if cell.plottable is not None:
            floor = task.cell(lam, measure.floor).plottable if measure.floor else None
            yield _row(facts, task.name, lam, cell) | {"scaled": scaled, "floor": floor}


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


def curve_chart(
    facts: Facts, rows: Sequence[dict[str, Any]], measure: Measure, follows: bool = False
) -> alt.LayerChart:
    """Draw a metric along λ.

    Args:
        facts: the run.
        rows: what `curve_rows` or `outcome_curve_rows` yields.
        measure: the metric.
        follows: whether the λ of the slider is marked.
    """
    x = lam_axis(facts.every_lam, facts.parents)
    scale = alt.Scale(zero=False)
    base = alt.Chart().encode(x=x)
    value = alt.Y("value:Q", title=measure.axis, scale=scale)
    tooltip = [
        alt.Tooltip("lambda:N", title="λ"),
        alt.Tooltip("value:Q", title=measure.title, format=measure.form),
        alt.Tooltip("low:Q", title="95 % from", format=measure.form),
        alt.Tooltip("high:Q", title="to", format=measure.form),
        alt.Tooltip("documents:Q", title="documents", format="d"),
    ]
    layers = [
        base.mark_area(opacity=0.22, color=NEUTRAL).encode(
            y=alt.Y("low:Q", title=measure.axis, scale=scale), y2="high:Q"
        ),
        base.mark_line(color=NEUTRAL, strokeWidth=1.5).encode(y=value),
    ]
    if follows:
        layers.append(base.transform_filter(OF_STOP).mark_rule(color=NEUTRAL, strokeDash=[2, 3], strokeWidth=1.2))
    if any(row["scaled"] is not None for row in rows):
        rule = alt.Chart().mark_rule(color=OTHER_COLOUR, strokeDash=[6, 3], strokeWidth=1.6)
        level = alt.Y("mean(scaled):Q", title=measure.axis, scale=scale)
        label = alt.Chart().mark_text(align="right", dy=-6, fontSize=10, color=OTHER_COLOUR, text="aligned, T-scaled")
        layers += [rule.encode(y=level), label.encode(x=alt.X("max(lam):Q"), y=level)]
    if any(row.get("floor") is not None for row in rows):
        noise = alt.Y("floor:Q", title=measure.axis, scale=scale)
        dotted = base.mark_line(color=NEUTRAL, strokeWidth=1.4, strokeDash=[1, 3]).encode(y=noise)
        last = alt.Chart().transform_joinaggregate(most="max(lam)", groupby=["task"])
        last = last.transform_filter("datum.lam === datum.most")
        label = last.mark_text(align="right", dy=9, fontSize=10, color=NEUTRAL, text="noise alone").encode(
            x=alt.X("lam:Q"), y=noise
        )
        layers += [dotted, label]
    dots = base.mark_point(filled=True, opacity=1, size=42).encode(
        y=value, color=lam_colour(facts.every_lam), shape=role_shape(), tooltip=tooltip
    )
    parents = dots.transform_filter("datum.role !== 'other λ'").mark_point(filled=True, opacity=1, size=110)
    return alt.LayerChart(data=chart_data(rows, _COLUMNS), layer=[*layers, dots, parents])
