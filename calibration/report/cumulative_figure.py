"""This figure draws cumulative differences: where a model is over-confident they rise, and a calibrated one stays near 0."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.metrics.cumulative import Walk
from calibration.report.data import chart_data
from calibration.report.facts import Facts, TaskFacts
from calibration.report.style import NEUTRAL, lam_colour, number
from calibration.report.vega import Spec, calculated, mark, nominal, quantitative

_COLUMNS = ("task", "lambda", "lam", "point", "share", "gap", "band", "label")
_DIGITS = 4
_UNIT = {"domain": [0, 1], "nice": False}
_FIRST = "datum.share === 0"


def cumulative_rows(facts: Facts, task: TaskFacts) -> Iterator[dict[str, Any]]:
    """Yield the points of the curves at the stops of the slider; the first of each λ has its statistic as a label."""
    for stop, lam in enumerate(facts.stops):
        walk = facts.walks.get((task.name, lam)) if lam in task.lambdas else None
        for place, (share, gap) in enumerate(walk.points if walk else ()):
            label = f"λ = {lam}, {_said(walk)}" if walk and not place else ""
            yield {
                **{"task": task.name, "lambda": lam, "lam": number(lam), "point": stop},
                **{"share": share, "gap": gap, "label": label, "band": walk.band if walk and not place else None},
            }


def _said(walk: Walk) -> str:
    return f"KS {walk.statistic:.3f}" + ("" if walk.band is None else f", p = {walk.p_value:.2g}")


def cumulative_chart(rows: Sequence[dict[str, Any]], grid: Sequence[str]) -> Spec:
    """Draw cumulative differences.

    Args:
        rows: what `cumulative_rows` yields for one task and λ, or for more that a transform filters to one.
        grid: all λs of the run, which decide the colour.
    """
    ends = [end for row in rows for end in (row["gap"], row["band"] or 0.0, -(row["band"] or 0.0))]
    low, high = min(ends, default=0.0), 1.12 * max(ends, default=0.0) or 1e-3
    x = quantitative("share", title="share of documents, the least confident first", scale=_UNIT)
    value_range = {"domain": [low, high], "nice": False}  # one range for all λs: heights can be compared
    y: Spec = {"title": "sum of confidence − correctness, per document", "scale": value_range}
    edges = [
        mark(
            "rule", {"y": quantitative("edge", **y)}, [_FIRST, *calculated(edge=edge)], color=NEUTRAL, strokeDash=[5, 4]
        )
        for edge in ("datum.band", "-datum.band")
    ]
    label = {"x": {"datum": 0, "scale": _UNIT}, "y": {"datum": high, "scale": value_range}, "text": nominal("label")}
    words = {"align": "left", "baseline": "top", "dx": 6, "dy": 4, "fontSize": 11}
    return {
        "data": chart_data(rows, _COLUMNS, _DIGITS),
        "layer": [
            mark("rule", {"y": {"datum": 0, "scale": value_range}}, color=NEUTRAL),
            *edges,
            mark("line", {"x": x, "y": quantitative("gap", **y), "color": lam_colour(grid)}, strokeWidth=2),
            mark("text", label, [_FIRST], **words),
        ],
    }
