"""Small multiples show accuracy and mean confidence along λ. Where they cross, a model is as sure as it should be."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.frontier.curve import shown_as
from calibration.report.data import chart_data
from calibration.report.facts import Facts, TaskFacts
from calibration.report.style import ACCURACY_COLOUR, OTHER_COLOUR, lam_axis, number
from calibration.report.vega import Spec, end, mark, nominal, quantitative, together_in

_COLUMNS = ("task", "lambda", "lam", "point", "series", "value", "low", "high", "apart")
_SERIES = ("accuracy", "mean confidence")


def task_rows(facts: Facts, task: TaskFacts) -> Iterator[dict[str, Any]]:
    """Yield accuracy and mean confidence at every finished λ; λs are `apart` as in `curve_rows`."""
    for lam in task.lambdas:
        for series, metric in zip(_SERIES, (facts.accuracy, shown_as("confidence", facts.confidence)), strict=True):
            cell = task.cell(lam, metric)
            if cell.plottable is not None:
                yield {
                    **{"task": task.name, "lambda": lam, "lam": number(lam), "point": facts.stop(lam)},
                    **{"series": series, "value": cell.plottable, "low": cell.low, "high": cell.high},
                    "apart": int(lam in task.apart),
                }


def domain(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return one vertical range for all tasks, because small multiples are compared with each other."""
    ends = [side for row in rows for side in (row["value"], row["low"], row["high"]) if side is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return max(0.0, low - 0.02), min(1.0, high + 0.02)


def tasks_chart(facts: Facts, rows: Sequence[dict[str, Any]], value_range: tuple[float, float]) -> Spec:
    """Draw the rows of one task, or of several tasks that a facet takes apart."""
    legend = {"title": None, "orient": "bottom", "symbolType": "stroke", "symbolOpacity": 1, "symbolSize": 300}
    colours = {"domain": list(_SERIES), "range": [ACCURACY_COLOUR, OTHER_COLOUR]}
    dashes = {"domain": list(_SERIES), "range": [[1, 0], [6, 3]]}
    along = {
        "x": lam_axis(facts.every_lam, facts.parents),
        "color": nominal("series", scale=colours, legend=legend),
    }

    def y(field: str) -> Spec:
        return quantitative(field, title="share, probability", scale={"domain": list(value_range), "nice": False})

    tooltip = [
        nominal("lambda", title="λ"),
        nominal("series", title="of"),
        quantitative("value", title="value", format=".4f"),
    ]
    dash = nominal("series", scale=dashes, legend=legend)
    together = together_in(rows)
    dots = along | {"y": y("value"), "tooltip": tooltip}
    hollow = [mark("point", dots, ["datum.apart"], filled=False, opacity=1, size=40)] if together else []
    return {
        "data": chart_data(rows, _COLUMNS),
        "layer": [
            mark("area", along | {"y": y("low"), "y2": end("high")}, together, opacity=0.16),
            mark("line", along | {"y": y("value"), "strokeDash": dash}, together, strokeWidth=2),
            mark("point", dots, together, size=28, filled=True, opacity=1),
            *hollow,
        ],
    }
