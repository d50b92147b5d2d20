"""A heat map shows a metric at the points of two coordinates."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.report.data import chart_data
from calibration.report.facts import Facts, TaskFacts
from calibration.report.measures import Measure
from calibration.report.vega import Spec, mark, nominal, ordinal, quantitative
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
            marks = [facts.role_of(point), "λ*" if point == star else "", "apart" if point in task.apart else ""]
            yield {
                **{"task": task.name, "lambda": point, "across": across, "up": up, "documents": cell.n},
                **{"value": cell.plottable, "low": cell.low, "high": cell.high},
                "label": ", ".join(role for role in marks if role not in ("", "other λ")),
            }


def plane_chart(facts: Facts, rows: Sequence[dict[str, Any]], measure: Measure) -> Spec:
    """Draw a metric over both coordinates; parents, λ* and what is compared with none are named.

    Args:
        facts: the facts of a run whose points have two coordinates.
        rows: what `plane_rows` yields for one task, or for several that a filter selects one of.
        measure: the metric.
    """
    across, up = facts.coordinates
    tooltip = [
        nominal("lambda", title="point"),
        quantitative("value", title=measure.title, format=measure.form),
        quantitative("low", title="95 % from", format=measure.form),
        quantitative("high", title="to", format=measure.form),
        quantitative("documents", title="documents", format="d"),
    ]
    cell = {
        "x": ordinal("across", title=f"λ of {across}", axis={"labelAngle": 0}),
        "y": ordinal("up", title=f"λ of {up}", sort="descending"),
    }
    # The colours of better values are the same in every map, and a key says which values they stand for.
    key = {"title": measure.axis, "orient": "top", "gradientLength": 200, "gradientThickness": 8, "titleLimit": 260}
    colour = quantitative("value", scale={"zero": False, "reverse": measure.is_error}, legend=key)
    name = {"fontSize": 10, "dy": 13, "fontWeight": "bold"}
    return {
        "data": chart_data(rows, _COLUMNS),
        "layer": [
            # The colours are pale, so that the numbers in the cells can be read on a light and on a dark page.
            mark("rect", cell | {"color": colour, "tooltip": tooltip}, opacity=0.45),
            mark("text", cell | {"text": quantitative("value", format=".3f")}, fontSize=11),
            mark("text", cell | {"text": nominal("label")}, ["datum.label"], **name),
        ],
    }
