"""A metrics table is laid out for a terminal or for a file: every mark is a word or a character, never a colour alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table
from rich.text import Text

from calibration import catalogue
from calibration.arrays import BINS
from calibration.catalogue import COUNTED, FLOOR, Column, Direction, Metric, Task
from calibration.measured_rows import tool_of
from calibration.scores.confidences import ALWAYS_KNOWN, confidence_of, in_order, in_words
from calibration.scores.per_document import CONFIDENCES, PMI
from calibration.task_at_lambda import PARENTS
from calibration.terminal.diversity import diversity_table
from calibration.terminal.lm_eval import outcome_table
from contract.errors import InputError
from contract.points import is_named, order
from contract.schemas import point_of

MISSING = "–"

_SOFTMAX_OF = {
    "sum": "the summed log-probabilities",
    "tokens": "the log-probabilities per token",
    "bytes": "the log-probabilities per byte",
    PMI: "the log-probabilities less those without the document",
}
_REASONS = {
    "docs_quarantined": "quarantined",
    "docs_unfinished": "not scored yet",
    "docs_undefined": "every choice has probability 0",
}


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
    stars: Mapping[str, str] | None = None,
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> list[Table]:
    """Lay out a metrics table: one rich table per task in order of appearance, with one row per λ, ascending.

    Each task or group that has metrics of lm-eval, or of another evaluator, has a second table of these. The parents' λs
    are marked `base` and `aligned`, and λ* is marked `λ*`. The best values of a column carry a `*`; for confidence −
    accuracy the best is the nearest to 0. A λ with documents still to be scored is marked `partial` and has no best value:
    fewer documents are no fair comparison. One that the answer compares with none is marked `apart`, likewise. A null
    prints as `–`. The tables fit into 80 columns, and with intervals into 100.

    Args:
        metrics: the metrics table, schemas.METRICS, as `analyse.analyse` returns it; only rows of split "all" are shown.
        confidence: the confidence whose metrics are shown: sum, tokens, bytes or pmi of choices, or one of
            `confidences.confidences_in` of written answers. Where not every choice task has it, choice tasks are shown under
            sum, as is a task of written answers without it; continuation tasks have only one.
        intervals: whether the intervals of accuracy and ECE are shown too; where there is no choice, of accuracy and NLL.
        parents: the point of each parent that is on the line.
        stars: λ* of each task and pool that has one.
        left_out: the λs of each that its answer compares with none, though all their documents are done.

    Raises:
        InputError: there is no such confidence.
    """
    known = sorted({*ALWAYS_KNOWN, *metrics["confidence"].unique().to_pylist()}, key=in_order)
    if confidence not in known:
        raise InputError(f"confidence {confidence!r} does not exist: give one of {', '.join(known)}")
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in metrics.filter(pc.equal(metrics["split"], "all")).to_pylist():
        tasks.setdefault(row["task"], []).append(row)
    roles = {lam: name for name, lam in parents.items()}
    tables = []
    split = {task: _by_tool(rows) for task, rows in tasks.items()}
    kinds = {task: catalogue.kind_of(row["metric"] for row in own) for task, (own, _) in split.items()}
    there = {task: {row["confidence"] for row in own} for task, (own, _) in split.items()}
    choices = [found for task, found in there.items() if found and kinds[task] in ("choices", "pool")]
    of_choices = confidence_of(set(CONFIDENCES).union(*choices).intersection(*choices), confidence)
    for task, (own, by_tool) in split.items():
        kind = kinds[task]
        if kind == "samples":
            tables.append(diversity_table(task, own, intervals, roles))
        elif own:
            used = confidence_of(there[task], confidence) if kind == "answers" else of_choices
            tables.append(
                _task_table(
                    task, own, kind, used, intervals, roles, (stars or {}).get(task), (left_out or {}).get(task, ())
                )
            )
        tables += [outcome_table(task, some, roles, tool, intervals) for tool, some in by_tool.items()]
    return tables


def _by_tool(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Return the rows of our own metrics, and those of each other evaluator."""
    own: list[dict[str, Any]] = []
    others: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tool = tool_of(row["metric"])
        (own if tool is None else others.setdefault(tool, [])).append(row)
    return own, others


def _task_table(
    task: str,
    rows: Sequence[dict[str, Any]],
    kind: Task,
    confidence: str,
    intervals: bool,
    roles: Mapping[str, str],
    star: str | None,
    apart: Sequence[str],
) -> Table:
    is_continuation = kind == "continuation"
    if is_continuation:
        confidence = "sum"
    columns = catalogue.columns(kind, confidence)
    lines = _lines(rows, confidence, {one.name for one, _ in columns if one.once})
    rivals = [line for line in lines if not line.is_partial and line.lam not in apart]
    best_values = {metric.name: _best_value(metric, rivals) for metric, _ in columns}

    # The title is Text instead of str, because rich would read the brackets of a name as markup.
    table = Table(title=Text(task, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    table.caption = Text("\n".join(_notes(lines, kind, confidence, intervals, star, apart)))
    table.caption_justify = "left"
    table.add_column("λ", justify="right", no_wrap=True)
    table.add_column("", min_width=len("aligned,"))  # marks: the one column that may wrap, where λ has many digits
    for _, column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
        if intervals and column.ends:
            table.add_column("95 %", no_wrap=True)
    table.add_column("docs", justify="right", no_wrap=True)
    for line in lines:
        unlike = "partial" if line.is_partial else "apart" if line.lam in apart else ""
        marks = [roles.get(line.lam, ""), "λ*" if line.lam == star else "", unlike]
        cells = []
        for metric, column in columns:
            cells.append(_cell(metric, column, line, None if unlike else best_values[metric.name]))
            if intervals and column.ends:
                cells.append(_interval(metric, column, line))
        table.add_row(line.lam, ", ".join(filter(None, marks)), *cells, str(line.counts[COUNTED[kind]]))
    return table


def _lines(rows: Sequence[dict[str, Any]], confidence: str, once: Collection[str]) -> list[_Line]:
    lines: dict[str, _Line] = {}
    for row in rows:
        line = lines.setdefault(point := point_of(row), _Line(point))
        if row["confidence"] == confidence or row["metric"] in once or row["metric"] in _REASONS:
            line.values[row["metric"]] = row["value"]
            line.counts[row["metric"]] = row["n"]
            if row["ci_low"] is not None:
                line.intervals[row["metric"]] = row["ci_low"], row["ci_high"]
    return sorted(lines.values(), key=lambda line: order(line.lam))


def _badness(direction: Direction, value: float) -> float:
    return {"up": -value, "down": value, "zero": abs(value), "none": 0.0}[direction]


def _best_value(metric: Metric, rivals: Sequence[_Line]) -> float | None:
    if metric.direction == "none":
        return None
    values = [value for line in rivals if (value := line.values.get(metric.name)) is not None]
    return min((_badness(metric.direction, value) for value in values), default=None)


def _cell(metric: Metric, column: Column, line: _Line, best: float | None) -> Text:
    value = line.values.get(metric.name)
    if value is None:
        return Text(f"{MISSING} ")
    is_best = best is not None and _badness(metric.direction, value) == best
    return Text(f"{value:{column.form}}{'*' if is_best else ' '}", style="bold green" if is_best else "")


def _interval(metric: Metric, column: Column, line: _Line) -> Text:
    if metric.name not in line.intervals:
        return Text("")
    ends = (f"{end:{column.ends}}".removeprefix("0") for end in line.intervals[metric.name])
    return Text("–".join(ends), style="dim")


def _notes(
    lines: Sequence[_Line], kind: Task, confidence: str, intervals: bool, star: str | None, apart: Sequence[str]
) -> list[str]:
    is_continuation = kind == "continuation"
    notes = ["*: best of its column, by whatever little"]
    if star is not None:
        notes[0] += "; λ*: lowest NLL among λs of nearly the best accuracy, as the answer below says"
    if kind == "answers":
        notes.append("mean@k, vote@k, pass@k: right outputs; right voted answers; documents with a right output")
        notes.append(f"confidence: {in_words(confidence)} ({confidence}); Brier: in [0, 1]")
        notes.append("P: after Platt scaling, fitted on the other half of the documents")
        lacking = [line for line in lines if line.values.get("missing")]
        if lacking:
            shares = _range([100 * (line.values["missing"] or 0.0) for line in lacking], ".1f")
            notes.append(f"without this confidence: {shares} % of the outputs at {_span(lacking, lines)}")
    elif is_continuation:
        notes.append("accuracy: the continuation is the greedy one; NLL: nats per continuation; perplexity: exp(NLL)")
        undecided = [line for line in lines if line.counts["acc"] < line.counts["nll"]]
        if undecided:
            fewest = min(line.counts["acc"] for line in undecided)
            notes.append(f"accuracy: documents with known token ranks, at least {fewest} at {_span(undecided, lines)}")
    else:
        notes.append(f"confidence: softmax over the choices of {_SOFTMAX_OF[confidence]} ({confidence})")
        notes.append(f"ECE: {BINS} bins of equal width; Brier: in [0, 2]; NLL: nats")
        if confidence != CONFIDENCES[0]:
            notes.append("T: after temperature scaling, because the temperature of this confidence is arbitrary")
        floors = [value for line in lines if (value := line.values.get(f"ece_floor{BINS}")) is not None]
        if floors and confidence == CONFIDENCES[0]:
            notes.append(f"noise alone gives an ECE of {_range(floors, '.3f')} with so many documents")
        notes += _impossible(lines)
    if kind == "pool":
        notes.append(
            "documents of all tasks pooled: opposite errors of tasks cancel in the ECE; macro: mean over tasks"
        )
    if intervals and any(line.intervals for line in lines):
        notes.append("95 %: bootstrap over documents")
    for reason, words in _REASONS.items():
        touched = [line for line in lines if line.values.get(reason)]
        if touched:
            counts = sorted({int(line.values[reason] or 0) for line in touched})
            number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
            total = touched[0].counts[reason]
            notes.append(f"left out: {number} of {total} documents at {_span(touched, lines)}: {words}")
    if any(line.lam in apart for line in lines):
        notes.append(
            "apart: scores are of other documents, or too many outputs lack the confidence; not compared with the others"
        )
    if any(line.is_partial for line in lines):
        notes.append("partial: documents are still to be scored, so this λ is not compared with the others")
    return notes


def _impossible(lines: Sequence[_Line]) -> list[str]:
    touched = [line for line in lines if line.values.get("gold_impossible")]
    if not touched:
        return []
    counts = [round((line.values["gold_impossible"] or 0) * line.counts["gold_impossible"]) for line in touched]
    floored = [line.values["nll_floored"] or 0.0 for line in touched]
    return [
        f"NLL is infinite at {_span(touched, lines)}: {_range(counts, 'd')} right choices have probability 0; "
        f"with probabilities of at least {FLOOR:g} it is {_range(floored, '.4f')}"
    ]


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


def _span(touched: Sequence[_Line], lines: Sequence[_Line]) -> str:
    if len(touched) <= 3:
        return "λ " + ("; " if is_named(touched[0].lam) else ", ").join(line.lam for line in touched)
    return f"{len(touched)} of {len(lines)} λs"
