"""These figures lay several runs over each other: along λ, at λ*, in what λ* gains on aligned, and as frontiers."""

from collections.abc import Iterator, Sequence
from typing import Any

from calibration.catalogue import answers
from calibration.comparison.gather import Comparison
from calibration.comparison.table import ComparedRow, compared_rows
from calibration.frontier.types import FrontierPoint, Value
from calibration.report.controls import OF_TASK, task_param
from calibration.report.data import chart_data
from calibration.report.style import NEUTRAL
from calibration.report.vega import Spec, end, following, mark, nominal, quantitative

# These colours of M. Okabe and K. Ito are readable on a light and on a dark page. From the eighth run on they come again.
_COLOURS = ("#2f7fc1", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7d8792")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SELECT = "#task"
_ALONG = ("task", "label", "lambda", "lam", "value", "low", "high")
_AT_STAR = ("task", "label", "lambda", "value", "low", "high")
_PLANE = ("task", "label", "lambda", "lam", "x", "y", "chosen")


def comparison_figures(found: Comparison) -> dict[str, dict[str, Spec]]:
    """Return the charts of each section of the page, by the element's id; all follow the page's list of tasks."""
    word, title = _error(found)
    metrics = (
        ("accuracy", "accuracy, share of documents ↑"),
        ("nll", "NLL, nats per document ↓"),
        ("error", f"{title} ↓"),
    )
    names = {"accuracy": "Accuracy", "nll": "NLL", "error": word}
    along = {
        f"along-{metric}": _along_chart(found, list(_along_rows(found, metric)), axis)
        | {"title": names[metric], "height": 240}
        for metric, axis in metrics
    }
    gains = {
        f"gain-{metric}": _gain_chart(found, rows, names[metric], metric)
        for metric, _ in metrics
        if (rows := list(_gain_rows(found, metric)))
    }
    star = _star_chart(found, list(_star_rows(found)))
    plane = _plane_chart(found, list(_plane_rows(found)), title) | {"height": 320}
    sections = {"along": along, "star": {"lambda-star": star}, "gains": gains, "frontiers": {"frontiers": plane}}
    params = [task_param(_SELECT, found.titles[0])]
    return {
        section: {name: following(chart, params, OF_TASK) for name, chart in charts.items()}
        for section, charts in sections.items()
        if charts
    }


def _error(found: Comparison) -> tuple[str, str]:
    answer = answers()[found.runs[0].frontiers[found.titles[0]].metric]
    return answer.word, answer.title


def _rows(found: Comparison) -> Iterator[tuple[str, ComparedRow]]:
    for title in found.titles:
        for row in compared_rows(found, title):
            yield title, row


def _along_rows(found: Comparison, metric: str) -> Iterator[dict[str, Any]]:
    for title, row in _rows(found):
        for point in row.frontier.points:
            value: Value = getattr(point, metric)
            yield _place(title, row, point) | {"value": value.value, "low": value.low, "high": value.high}


def _star_rows(found: Comparison) -> Iterator[dict[str, Any]]:
    for title, row in _rows(found):
        chosen = row.frontier.chosen
        ends = {"value": float(chosen.lam), "low": float(chosen.low), "high": float(chosen.high)}
        yield {"task": title, "label": row.run, "lambda": chosen.lam, **ends}


def _gain_rows(found: Comparison, metric: str) -> Iterator[dict[str, Any]]:
    for title, row in _rows(found):
        if row.gain:
            value: Value = getattr(row.gain, metric)
            ends = {"value": value.value, "low": value.low, "high": value.high}
            yield {"task": title, "label": row.run, "lambda": row.star.lam, **ends}


def _plane_rows(found: Comparison) -> Iterator[dict[str, Any]]:
    for title, row in _rows(found):
        for point in row.frontier.points:
            own = {"x": point.error.value, "y": point.accuracy.value, "chosen": int(point.lam == row.star.lam)}
            yield _place(title, row, point) | own


def _place(title: str, row: ComparedRow, point: FrontierPoint) -> dict[str, Any]:
    return {"task": title, "label": row.run, "lambda": point.lam, "lam": float(point.lam)}


def _colour(found: Comparison, legend: bool = True) -> Spec:
    names = [run.name for run in found.runs]
    colours = [_COLOURS[place % len(_COLOURS)] for place in range(len(names))]
    shown = (
        {"title": None, "orient": "bottom", "columns": 2, "symbolType": "stroke", "symbolOpacity": 1}
        if legend
        else None
    )
    return nominal("label", scale={"domain": names, "range": colours}, legend=shown)


def _dash(found: Comparison) -> Spec:
    names = [run.name for run in found.runs]
    dashes = [_DASHES[place % len(_DASHES)] for place in range(len(names))]
    return nominal("label", scale={"domain": names, "range": dashes}, legend=None)


def _tooltip(form: str) -> list[Spec]:
    return [
        nominal("label", title="run"),
        nominal("lambda", title="λ"),
        quantitative("value", title="value", format=form),
        quantitative("low", title="95 % from", format=form),
        quantitative("high", title="to", format=form),
    ]


def _along_chart(found: Comparison, rows: Sequence[dict[str, Any]], axis: str) -> Spec:
    x = quantitative("lam", title="λ (0 base, 1 aligned)", scale=_span([row["lam"] for row in rows]))
    y: Spec = {"title": axis, "scale": {"zero": False}}
    line = {"x": x, "y": quantitative("value", **y), "color": _colour(found)}
    band = {"x": x, "y": quantitative("low", **y), "y2": end("high"), "color": _colour(found)}
    return {
        "data": chart_data(rows, _ALONG),
        "layer": [
            mark("area", band, opacity=0.12),
            mark("line", line | {"strokeDash": _dash(found)}, strokeWidth=2),
            mark("point", line | {"tooltip": _tooltip(".4f")}, size=26, filled=True, opacity=1),
        ],
    }


def _star_chart(found: Comparison, rows: Sequence[dict[str, Any]]) -> Spec:
    every = [float(point.lam) for run in found.runs for one in run.frontiers.values() for point in one.points]
    channel: Spec = {"title": "λ* (0 base, 1 aligned)", "scale": _span(every)}
    return {"data": chart_data(rows, _AT_STAR), "layer": _dots(found, channel, ".3f")} | _rows_high("λ*")


def _gain_chart(found: Comparison, rows: Sequence[dict[str, Any]], name: str, metric: str) -> Spec:
    better = "above 0" if metric == "accuracy" else "below 0"
    channel: Spec = {"title": f"{name} of λ* less aligned's ({better} λ* is better)", "scale": {"zero": True}}
    zero = mark("rule", {"x": {"datum": 0}}, color=NEUTRAL, strokeDash=[5, 4])
    return {"data": chart_data(rows, _AT_STAR), "layer": [zero, *_dots(found, channel, "+.4f")]} | _rows_high(name)


def _rows_high(title: str) -> Spec:
    return {"title": title, "height": {"step": 26}}


def _dots(found: Comparison, channel: Spec, form: str) -> list[Spec]:
    y = nominal("label", title=None, sort=[run.name for run in found.runs])
    colour = _colour(found, legend=False)
    line = {"x": quantitative("low", **channel), "x2": end("high"), "y": y, "color": colour}
    dot = {"x": quantitative("value", **channel), "y": y, "color": colour, "tooltip": _tooltip(form)}
    return [mark("rule", line, strokeWidth=2.4), mark("point", dot, size=90, filled=True, opacity=1)]


def _plane_chart(found: Comparison, rows: Sequence[dict[str, Any]], title: str) -> Spec:
    place = {
        "x": quantitative("x", title=f"{title}, 0 to 1 (lower is better)", scale={"zero": False}),
        "y": quantitative("y", title="accuracy, share of documents (higher is better)", scale={"zero": False}),
        "color": _colour(found),
    }
    tooltip = [
        nominal("label", title="run"),
        nominal("lambda", title="λ"),
        quantitative("y", title="accuracy", format=".4f"),
        quantitative("x", title="error", format=".4f"),
    ]
    ends = ["datum.lambda === '0' || datum.lambda === '1'"]
    return {
        "title": "Accuracy against calibration",
        "data": chart_data(rows, _PLANE),
        "layer": [
            mark("line", place | {"order": quantitative("lam"), "strokeDash": _dash(found)}, strokeWidth=1.6),
            mark("point", place | {"tooltip": tooltip}, size=36, filled=True, opacity=1),
            mark("point", place, ["datum.chosen === 1"], size=260, strokeWidth=2.2, filled=False),
            mark("text", place | {"text": nominal("lambda")}, ends, dx=7, dy=-8, align="left", fontSize=11),
        ],
    }


def _span(values: Sequence[float]) -> Spec:
    low, high = min(values), max(values)
    margin = 0.03 * (high - low) or 0.5
    return {"domain": [low - margin, high + margin], "nice": False}
