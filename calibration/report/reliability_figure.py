"""This module draws reliability diagrams, and histograms of the confidence that go beneath them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from calibration.metrics.reliability_bins import consistency
from calibration.report.data import chart_data
from calibration.report.style import ACCURACY_COLOUR, NEUTRAL, OTHER_COLOUR, lam_colour, number
from calibration.report.vega import Spec, calculated, end, mark, nominal, quantitative
from contract.schemas import point_of

_COLUMNS = (
    *("task", "lambda", "lam", "point", "bin_low", "bin_high", "n", "share"),
    *("mean_confidence", "accuracy", "ci_low", "ci_high", "calibrated_low", "calibrated_high", "label"),
)
_DIGITS = 4  # numbers have few digits, because there are hundreds of bins for each λ
_TOOLTIP = [
    nominal("lambda", title="λ"),
    quantitative("bin_low", title="confidence above", format=".3f"),
    quantitative("bin_high", title="up to", format=".3f"),
    quantitative("mean_confidence", title="mean confidence", format=".4f"),
    quantitative("accuracy", title="accuracy", format=".4f"),
    quantitative("calibrated_low", title="if calibrated: from", format=".4f"),
    quantitative("calibrated_high", title="to", format=".4f"),
    quantitative("n", title="number", format="d"),
]
_ROOM = 1.1
_UNIT = {"domain": [0, 1], "nice": False}


def bin_dicts(bins: pa.Table, events: str, grid: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the bins of documents or of tokens at the λs of `grid`; `point` is the place of λ in `grid`.

    Bins of documents have the ends of their consistency bars as `calibrated_low` and `calibrated_high`.

    Args:
        bins: rows of schemas.BINS with one confidence and split.
        events: `documents`, `tokens` or `answers`.
        grid: the canonical λs.
    """
    rows = bins.filter(pc.equal(bins["events"], events)).to_pylist()
    places = {lam: place for place, lam in enumerate(grid)}
    totals: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["task"], point_of(row)
        totals[key] = totals.get(key, 0) + row["n"]
    for row in rows:
        if (lam := point_of(row)) in places:
            share = row["n"] / totals[row["task"], lam]
            # The tokens of a document depend on each other, so it is not known how much their accuracy would vary.
            ends = consistency(row["n"], row["mean_confidence"]) if events == "documents" else (None, None)
            yield row | {
                **{"lambda": lam, "lam": number(lam), "point": places[lam], "share": share},
                **{"calibrated_low": ends[0], "calibrated_high": ends[1]},
            }


def reliability_chart(rows: Sequence[dict[str, Any]], grid: Sequence[str], of: str = "documents") -> Spec:
    """Draw accuracy against confidence; a model is under-confident above the diagonal and over-confident below it.

    Args:
        rows: what `bin_dicts` yields for one task and λ, or for more that a transform or a facet filters to one.
        grid: all λs of the run, which decide the colour.
        of: the name of what a bin counts: documents, tokens or answers.
    """
    title = "confidence, probability"
    y = quantitative("accuracy", title=f"accuracy, share of {of}", scale=_UNIT)
    middle = quantitative("mean_confidence", title=title, scale=_UNIT)
    colour, zero, one = lam_colour(grid), {"datum": 0, "scale": _UNIT}, {"datum": 1, "scale": _UNIT}
    bar = {"x": quantitative("bin_low", title=title, scale=_UNIT), "x2": end("bin_high"), "y": y, "y2": {"datum": 0}}
    diagonal = {"x": zero, "y": zero, "x2": {"datum": 1}, "y2": {"datum": 1}}
    whisker = {"x": middle, "y": quantitative("ci_low", scale=_UNIT), "y2": end("ci_high"), "color": colour}
    calibrated = {"x": middle, "y": quantitative("calibrated_low", scale=_UNIT), "y2": end("calibrated_high")}
    known: list[Spec | str] = ["isValid(datum.calibrated_low)"]
    dot = {"x": middle, "y": y, "color": colour, "tooltip": _TOOLTIP}
    words = {"align": "left", "baseline": "top", "dx": 6, "dy": 6, "fontSize": 11, "lineBreak": "\n"}
    return {
        "data": chart_data(rows, _COLUMNS, _DIGITS),
        "layer": [
            mark("rule", calibrated, known, strokeWidth=9, opacity=0.3, color=NEUTRAL),
            mark("bar", bar | {"color": colour}, opacity=0.32, binSpacing=0),
            mark("rule", diagonal, color=NEUTRAL, strokeDash=[5, 4]),
            mark("rule", whisker, strokeWidth=1.6),
            mark("point", dot, filled=True, opacity=1, size=50),
            mark("text", {"x": zero, "y": one, "text": nominal("summary")}, _SUMMED, **words),
        ],
    }


def histogram_chart(rows: Sequence[dict[str, Any]], grid: Sequence[str], of: str = "documents") -> Spec:
    """Draw how the confidence is spread, with its mean (dashed) and the accuracy (solid).

    The arguments are those of `reliability_chart`.
    """
    # The axis is the same at every λ, so that heights can be compared, and no bar touches the top.
    top = _ROOM * max((row["share"] for row in rows), default=1.0)
    bar = {
        "x": quantitative("bin_low", title="confidence, probability", scale=_UNIT),
        "x2": end("bin_high"),
        "y": quantitative("share", title=f"share of {of}", scale={"domain": [0, top]}, axis={"format": "%"}),
        **{"y2": {"datum": 0}, "color": lam_colour(grid), "tooltip": _TOOLTIP},
    }
    accuracy = {"x": quantitative("all_accuracy")}
    confidence = {"x": quantitative("all_confidence")}
    return {
        "data": chart_data(rows, _COLUMNS, _DIGITS),
        "layer": [
            mark("bar", bar, opacity=0.6, binSpacing=1),
            mark("rule", accuracy, _SUMMED, strokeWidth=2.2, color=ACCURACY_COLOUR),
            mark("rule", confidence, _SUMMED, strokeWidth=2.2, color=OTHER_COLOUR, strokeDash=[5, 3]),
        ],
    }


# This sums up the bins of one λ as `all_accuracy` and `all_confidence`, and the ECE as text in `summary`.
_SUMMED: list[Spec | str] = [
    *calculated(
        right="datum.n * datum.accuracy",
        sure="datum.n * datum.mean_confidence",
        gap="datum.n * abs(datum.accuracy - datum.mean_confidence)",
    ),
    {
        "aggregate": [{"op": "sum", "field": field, "as": field} for field in ("n", "right", "sure", "gap")],
        "groupby": ["lambda"],
    },
    *calculated(
        all_accuracy="datum.right / datum.n",
        all_confidence="datum.sure / datum.n",
        ece="datum.gap / datum.n",
        summary="'λ = ' + datum['lambda'] + ', n = ' + datum.n + '\\nECE ' + format(datum.ece, '.3f')",
    ),
]
