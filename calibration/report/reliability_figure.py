"""This module draws reliability diagrams, and histograms of the confidence that go beneath them."""

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pyarrow as pa
import pyarrow.compute as pc

from calibration.report.data import chart_data
from calibration.report.style import ACCURACY_COLOUR, NEUTRAL, OTHER_COLOUR, lam_colour, number
from contract.schemas import point_of

_COLUMNS = (
    *("task", "lambda", "lam", "point", "bin_low", "bin_high", "n", "share"),
    *("mean_confidence", "accuracy", "ci_low", "ci_high", "label"),
)
_DIGITS = 4  # numbers have few digits, because there are hundreds of bins for each λ
_TOOLTIP = [
    alt.Tooltip("lambda:N", title="λ"),
    alt.Tooltip("bin_low:Q", title="confidence above", format=".3f"),
    alt.Tooltip("bin_high:Q", title="up to", format=".3f"),
    alt.Tooltip("mean_confidence:Q", title="mean confidence", format=".4f"),
    alt.Tooltip("accuracy:Q", title="accuracy", format=".4f"),
    alt.Tooltip("n:Q", title="number", format="d"),
]


def bin_dicts(bins: pa.Table, events: str, grid: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the bins of documents or of tokens at the λs of `grid`; `point` is the place of λ in `grid`.

    Args:
        bins: rows of schemas.BINS with one confidence and split.
        events: `documents` or `tokens`.
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
            yield row | {"lambda": lam, "lam": number(lam), "point": places[lam], "share": share}


def reliability_chart(rows: Sequence[dict[str, Any]], grid: Sequence[str], of: str = "documents") -> alt.LayerChart:
    """Draw accuracy against confidence; a model is under-confident above the diagonal and over-confident below it.

    Args:
        rows: what `bin_dicts` yields for one task and λ, or for more that a transform or a facet filters to one.
        grid: all λs of the run, which decide the colour.
        of: documents or tokens.
    """
    unit = alt.Scale(domain=[0, 1], nice=False)
    x = alt.X("bin_low:Q", title="confidence, probability", scale=unit)
    y = alt.Y("accuracy:Q", title=f"accuracy, share of {of}", scale=unit)
    middle = alt.X("mean_confidence:Q", title="confidence, probability", scale=unit)
    colour = lam_colour(grid)
    base = alt.Chart()
    return alt.LayerChart(
        data=chart_data(rows, _COLUMNS, _DIGITS),
        layer=[
            base.mark_bar(opacity=0.32, binSpacing=0).encode(x=x, x2="bin_high:Q", y=y, y2=alt.datum(0), color=colour),
            base.mark_rule(color=NEUTRAL, strokeDash=[5, 4]).encode(
                x=alt.datum(0, scale=unit), y=alt.datum(0, scale=unit), x2=alt.datum(1), y2=alt.datum(1)
            ),
            base.mark_rule(strokeWidth=1.6).encode(
                x=middle, y=alt.Y("ci_low:Q", scale=unit), y2="ci_high:Q", color=colour
            ),
            base.mark_point(filled=True, opacity=1, size=50).encode(x=middle, y=y, color=colour, tooltip=_TOOLTIP),
            _summed(base)
            .mark_text(align="left", baseline="top", dx=6, dy=6, fontSize=11, lineBreak="\n")
            .encode(x=alt.datum(0, scale=unit), y=alt.datum(1, scale=unit), text="summary:N"),
        ],
    )


def histogram_chart(rows: Sequence[dict[str, Any]], grid: Sequence[str], of: str = "documents") -> alt.LayerChart:
    """Draw how the confidence is spread, with its mean (dashed) and the accuracy (solid).

    The arguments are those of `reliability_chart`.
    """
    top = max((row["share"] for row in rows), default=1.0)  # the axis is the same at every λ: heights can be compared
    x = alt.X("bin_low:Q", title="confidence, probability", scale=alt.Scale(domain=[0, 1], nice=False))
    y = alt.Y("share:Q", title=f"share of {of}", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(format="%"))
    base = alt.Chart()
    return alt.LayerChart(
        data=chart_data(rows, _COLUMNS, _DIGITS),
        layer=[
            base.mark_bar(opacity=0.6, binSpacing=1).encode(
                x=x, x2="bin_high:Q", y=y, y2=alt.datum(0), color=lam_colour(grid), tooltip=_TOOLTIP
            ),
            _summed(base).mark_rule(strokeWidth=2.2, color=ACCURACY_COLOUR).encode(x="all_accuracy:Q"),
            _summed(base)
            .mark_rule(strokeWidth=2.2, color=OTHER_COLOUR, strokeDash=[5, 3])
            .encode(x="all_confidence:Q"),
        ],
    )


def _summed(base: alt.Chart) -> alt.Chart:
    """Sum up the bins of one λ as `all_accuracy` and `all_confidence`, and the ECE as text in `summary`."""
    return (
        base.transform_calculate(
            right="datum.n * datum.accuracy",
            sure="datum.n * datum.mean_confidence",
            gap="datum.n * abs(datum.accuracy - datum.mean_confidence)",
        )
        .transform_aggregate(n="sum(n)", right="sum(right)", sure="sum(sure)", gap="sum(gap)", groupby=["lambda"])
        .transform_calculate(
            all_accuracy="datum.right / datum.n",
            all_confidence="datum.sure / datum.n",
            ece="datum.gap / datum.n",
        )
        .transform_calculate(
            summary="'λ = ' + datum['lambda'] + ', n = ' + datum.n + '\\nECE ' + format(datum.ece, '.3f')"
        )
    )
