"""Small multiples show accuracy and mean confidence along λ. Where they cross, a model is as sure as it should be."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from calibration.frontier.curve import shown_as
from calibration.report.data import chart_data
from calibration.report.facts import Facts, TaskFacts
from calibration.report.style import ACCURACY_COLOUR, OTHER_COLOUR, lam_axis, number

_COLUMNS = ("task", "lambda", "lam", "point", "series", "value", "low", "high")
_SERIES = ("accuracy", "mean confidence")


def task_rows(facts: Facts, task: TaskFacts) -> Iterator[dict[str, Any]]:
    """Yield accuracy and mean confidence at every finished λ."""
    for lam in task.lambdas:
        for series, metric in zip(_SERIES, (facts.accuracy, shown_as("confidence", facts.confidence)), strict=True):
            cell = task.cell(lam, metric)
            if cell.plottable is not None:
                yield {
                    **{"task": task.name, "lambda": lam, "lam": number(lam), "point": facts.stop(lam)},
                    **{"series": series, "value": cell.plottable, "low": cell.low, "high": cell.high},
                }


def domain(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return one vertical range for all tasks, because small multiples are compared with each other."""
    ends = [end for row in rows for end in (row["value"], row["low"], row["high"]) if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return max(0.0, low - 0.02), min(1.0, high + 0.02)


def tasks_chart(facts: Facts, rows: Sequence[dict[str, Any]], span: tuple[float, float]) -> alt.LayerChart:
    """Draw the rows of one task, or of several tasks that a facet takes apart."""
    scale = alt.Scale(domain=list(span), nice=False)
    legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", symbolOpacity=1, symbolSize=300)
    colour = alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(_SERIES), range=[ACCURACY_COLOUR, OTHER_COLOUR]),
        legend=legend,
    )
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=list(_SERIES), range=[[1, 0], [6, 3]]), legend=legend)
    base = alt.Chart().encode(x=lam_axis(facts.every_lam, facts.parents), color=colour)
    tooltip = [
        alt.Tooltip("lambda:N", title="λ"),
        alt.Tooltip("series:N", title="of"),
        alt.Tooltip("value:Q", title="value", format=".4f"),
    ]
    value = alt.Y("value:Q", title="share, probability", scale=scale)
    return alt.LayerChart(
        data=chart_data(rows, _COLUMNS),
        layer=[
            base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q", title="share, probability", scale=scale), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=value, strokeDash=dash),
            base.mark_point(size=28, filled=True, opacity=1).encode(y=value, tooltip=tooltip),
        ],
    )
