"""A heat map shows a metric at the points of two coordinates."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from calibration.report.data import chart_data
from calibration.report.facts import Facts, TaskFacts
from calibration.report.measures import Measure
from contract.points import coordinates

_COLUMNS = ("task", "lambda", "across", "up", "value", "low", "high", "documents", "label")


def plane_measures(facts: Facts, measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the main ones of these measures, which are drawn; or none unless points have two coordinates."""
    return tuple(one for one in measures if one.is_main) if len(facts.coordinates) == 2 else ()


def plane_rows(facts: Facts, task: TaskFacts, measure: Measure) -> Iterator[dict[str, Any]]:
    """Yield one row per finished point at which the metric is a finite number."""
    star = task.frontier.chosen.lam if task.frontier else None
    for point in task.lambdas:
        cell = task.cell(point, measure.metric)
        if cell.plottable is not None:
            across, up = (float(lam) for lam in coordinates(point).values())
            marks = [facts.role_of(point), "λ*" if point == star else ""]
            yield {
                **{"task": task.name, "lambda": point, "across": across, "up": up, "documents": cell.n},
                **{"value": cell.plottable, "low": cell.low, "high": cell.high},
                "label": ", ".join(mark for mark in marks if mark not in ("", "other λ")),
            }


def plane_chart(facts: Facts, rows: Sequence[dict[str, Any]], measure: Measure) -> alt.LayerChart:
    """Draw a metric over both coordinates; parents and λ* are named.

    Args:
        facts: the facts of a run whose points have two coordinates.
        rows: what `plane_rows` yields for one task, or for several that a filter selects one of.
        measure: the metric.
    """
    across, up = facts.coordinates
    tooltip = [
        alt.Tooltip("lambda:N", title="point"),
        alt.Tooltip("value:Q", title=measure.title, format=measure.form),
        alt.Tooltip("low:Q", title="95 % from", format=measure.form),
        alt.Tooltip("high:Q", title="to", format=measure.form),
        alt.Tooltip("documents:Q", title="documents", format="d"),
    ]
    base = alt.Chart().encode(
        x=alt.X("across:O", title=f"λ of {across}", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("up:O", title=f"λ of {up}", sort="descending"),
    )
    colour = alt.Color("value:Q", title=measure.axis, scale=alt.Scale(zero=False), legend=None)
    return alt.LayerChart(
        data=chart_data(rows, _COLUMNS),
        layer=[
            # The colours are pale, so that the numbers in the cells can be read on a light and on a dark page.
            base.mark_rect(opacity=0.45).encode(color=colour, tooltip=tooltip),
            base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".3f")),
            base.transform_filter("datum.label")
            .mark_text(fontSize=10, dy=13, fontWeight="bold")
            .encode(text="label:N"),
        ],
    )
