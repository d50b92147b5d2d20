"""A metrics table is laid out for a terminal or for a file: every mark is a word or a character, never a colour alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from calibration.arrays import BINS
from calibration.lm_eval_rows import PREFIX
from calibration.metrics.choice_tasks import ACCURACY
from calibration.scores.per_document import CONFIDENCES
from calibration.task_at_lambda import PARENTS
from calibration.terminal.diversity import diversity_table, is_diversity
from calibration.terminal.lm_eval import outcome_table
from contract.errors import InputError
from contract.points import is_named, order
from contract.schemas import point_of

MISSING = "–"

_SOFTMAX_OF = {
    "sum": "the summed log-probabilities",
    "tokens": "the log-probabilities per token",
    "bytes": "the log-probabilities per byte",
}
_REASONS = {
    "docs_quarantined": "quarantined",
    "docs_unfinished": "not scored yet",
    "docs_undefined": "every choice has probability 0",
}


@dataclass(frozen=True, slots=True)
class _Column:
    metric: str
    header: str
    form: str  # z: what rounds to zero has no minus
    best: str  # max, min or zero (the nearest to it)
    ends: str = ""  # form of its interval's; none: it is not shown


@dataclass(slots=True)
class _Line:
    """One point of one task."""

    lam: str  # canonical
    values: dict[str, float | None] = field(default_factory=dict)  # by metric
    counts: dict[str, int] = field(default_factory=dict)  # documents behind each value
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # by metric, where there is one

    @property
    def is_partial(self) -> bool:
        return bool(self.values.get("docs_unfinished"))


def render(
    metrics: pa.Table,
    confidence: str = "sum",
    intervals: bool = False,
    parents: Mapping[str, str] = PARENTS,
) -> list[Table]:
    """Lay out a metrics table: one rich table per task in order of appearance, with one row per λ, ascending.

    Each task or group that has lm-eval's own metrics has a second table of these. The parents' λs are marked `base` and
    `aligned`, and the λ of highest accuracy is marked `best` (of equals it is the one of lower NLL, then the lower λ). The
    best values of a column carry a `*`; for confidence − accuracy the best is the nearest to 0. A λ with documents still to
    be scored is marked `partial` and gets neither mark: fewer documents are no fair comparison. A null prints as `–`. The
    tables fit into 80 columns, and with intervals into 100.

    Args:
        metrics: the metrics table, schemas.METRICS, as `analyse.analyse` returns it; only rows of split "all" are shown.
        confidence: the confidence whose metrics are shown: sum, tokens or bytes. Continuation tasks have only one.
        intervals: whether the intervals of accuracy and ECE are shown too; where there is no choice, of accuracy and NLL.
        parents: the point of each parent that is on the line.

    Raises:
        InputError: there is no such confidence.
    """
    if confidence not in CONFIDENCES:
        raise InputError(f"confidence {confidence!r} does not exist: give one of {', '.join(CONFIDENCES)}")
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in metrics.filter(pc.equal(metrics["split"], "all")).to_pylist():
        tasks.setdefault(row["task"], []).append(row)
    roles = {lam: name for name, lam in parents.items()}
    tables = []
    for task, rows in tasks.items():
        outcomes = [row for row in rows if row["metric"].startswith(PREFIX)]
        own = [row for row in rows if not row["metric"].startswith(PREFIX)]
        if is_diversity(own):
            tables.append(diversity_table(task, own, intervals, roles))
        elif own:
            tables.append(_task_table(task, own, confidence, intervals, roles))
        tables += [outcome_table(task, outcomes, roles)] if outcomes else []
    return tables


def _task_table(
    task: str, rows: Sequence[dict[str, Any]], confidence: str, intervals: bool, roles: Mapping[str, str]
) -> Table:
    is_continuation = any(row["metric"] == "perplexity" for row in rows)
    if is_continuation:
        confidence = "sum"
    columns = _columns(confidence, is_continuation)
    lines = _lines(rows, confidence)
    rivals = [line for line in lines if not line.is_partial]
    best_values = {column.metric: _best_value(column, rivals) for column in columns}
    best_line = _best_line(columns[0].metric, rivals)

    # The title is Text instead of str, because rich would read the brackets of a name as markup.
    table = Table(title=Text(task, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    table.caption = Text("\n".join(_notes(lines, confidence, is_continuation, intervals)))
    table.caption_justify = "left"
    table.add_column("λ", justify="right", no_wrap=True)
    table.add_column("", min_width=len("aligned,"))  # marks: the one column that may wrap, where λ has many digits
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
        if intervals and column.ends:
            table.add_column("95 %", no_wrap=True)
    table.add_column("docs", justify="right", no_wrap=True)
    for line in lines:
        marks = [roles.get(line.lam, ""), "best" if line is best_line else "", "partial" if line.is_partial else ""]
        cells = []
        for column in columns:
            cells.append(_cell(column, line, None if line.is_partial else best_values[column.metric]))
            if intervals and column.ends:
                cells.append(_interval(column, line))
        table.add_row(line.lam, ", ".join(filter(None, marks)), *cells, str(line.counts["nll"]))
    return table


def _columns(confidence: str, is_continuation: bool) -> list[_Column]:
    accuracy = _Column(ACCURACY[confidence], "accuracy", "z.4f", "max", ".3f")
    nll = _Column("nll", "NLL", "z.4f", "min")
    if is_continuation:
        nll = _Column("nll", "NLL", "z.4f", "min", ".2f")
        return [accuracy, nll, _Column("perplexity", "perplexity", "#.5g", "min")]
    ece = _Column(f"ece_width{BINS}", "ECE", "z.4f", "min", ".3f")
    brier = _Column("brier", "Brier", "z.4f", "min")
    return [accuracy, ece, brier, nll, _Column("overconfidence", "conf−acc", "+z.4f", "zero")]


def _lines(rows: Sequence[dict[str, Any]], confidence: str) -> list[_Line]:
    lines: dict[str, _Line] = {}
    for row in rows:
        line = lines.setdefault(point := point_of(row), _Line(point))
        if row["confidence"] == confidence or row["metric"] in _REASONS:
            line.values[row["metric"]] = row["value"]
            line.counts[row["metric"]] = row["n"]
            if row["ci_low"] is not None:
                line.intervals[row["metric"]] = row["ci_low"], row["ci_high"]
    return sorted(lines.values(), key=lambda line: order(line.lam))


def _badness(column: _Column, value: float) -> float:
    return {"max": -value, "min": value, "zero": abs(value)}[column.best]


def _best_value(column: _Column, rivals: Sequence[_Line]) -> float | None:
    values = [value for line in rivals if (value := line.values.get(column.metric)) is not None]
    return min((_badness(column, value) for value in values), default=None)


def _best_line(accuracy: str, rivals: Sequence[_Line]) -> _Line | None:
    def rank(line: _Line) -> tuple[float, float, tuple[Decimal, ...]]:
        nll = line.values.get("nll")
        return -(line.values[accuracy] or 0.0), float("inf") if nll is None else nll, order(line.lam)

    return min((line for line in rivals if line.values.get(accuracy) is not None), key=rank, default=None)


def _cell(column: _Column, line: _Line, best: float | None) -> Text:
    value = line.values.get(column.metric)
    if value is None:
        return Text(f"{MISSING} ")
    is_best = best is not None and _badness(column, value) == best
    return Text(f"{value:{column.form}}{'*' if is_best else ' '}", style="bold green" if is_best else "")


def _interval(column: _Column, line: _Line) -> Text:
    if column.metric not in line.intervals:
        return Text("")
    ends = (f"{end:{column.ends}}".removeprefix("0") for end in line.intervals[column.metric])
    return Text("–".join(ends), style="dim")


def _notes(lines: Sequence[_Line], confidence: str, is_continuation: bool, intervals: bool) -> list[str]:
    notes = ["* best of its column; best: highest accuracy, of equals the lowest NLL"]
    if is_continuation:
        notes.append("accuracy: the continuation is the greedy one; NLL: nats per continuation; perplexity: exp(NLL)")
        undecided = [line for line in lines if line.counts["acc"] < line.counts["nll"]]
        if undecided:
            fewest = min(line.counts["acc"] for line in undecided)
            notes.append(f"accuracy: documents with known token ranks, at least {fewest} at {_span(undecided, lines)}")
    else:
        notes.append(f"confidence: softmax over the choices of {_SOFTMAX_OF[confidence]} ({confidence})")
        notes.append(f"ECE: {BINS} bins of equal width; Brier: in [0, 2]; NLL: nats")
    if intervals and any(line.intervals for line in lines):
        below = "" if is_continuation else "; of ECE without the upward push of noise, so maybe below the value"
        notes.append(f"95 %: bootstrap over documents{below}")
    for reason, words in _REASONS.items():
        touched = [line for line in lines if line.values.get(reason)]
        if touched:
            counts = sorted({int(line.values[reason] or 0) for line in touched})
            number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
            total = touched[0].counts[reason]
            notes.append(f"left out: {number} of {total} documents at {_span(touched, lines)}: {words}")
    if any(line.is_partial for line in lines):
        notes.append("partial: documents are still to be scored, so this λ is not compared with the others")
    return notes


def _span(touched: Sequence[_Line], lines: Sequence[_Line]) -> str:
    if len(touched) <= 3:
        return "λ " + ("; " if is_named(touched[0].lam) else ", ").join(line.lam for line in touched)
    return f"{len(touched)} of {len(lines)} λs"
