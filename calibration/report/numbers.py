"""The page lists the metrics of each task in a table, with a row for each λ."""

from dataclasses import dataclass

from calibration.catalogue import COUNTED
from calibration.report.facts import Cell, Facts, Outcomes, TaskFacts
from calibration.report.measures import Measure, drawn_measures
from contract.points import order

ROWS = 400  # if the tables of a page would have more rows, they show only parents, λ* and frontier
COMMAND_METRICS = 8  # a task has at most so many metrics in the table of what a command measured
_MISSING = "–"
_PLAIN = Measure("", "", "", form=".5g")


@dataclass(frozen=True, slots=True)
class Numbers:
    """This is the table of one task."""

    task: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # each row has λ, its marks, documents, then `value [low, high]` of each metric
    left_out: int  # the number of λs that are not shown


def numbers(facts: Facts) -> list[Numbers]:
    """Return the table of every task that has anything scored; λs that are partly scored are marked."""
    tasks = sorted((task for task in facts.tasks if task.lambdas or task.partial), key=lambda task: not task.is_pool)
    few = sum(len(task.lambdas) + len(task.partial) for task in tasks) <= ROWS
    found = [_of_task(facts, task, few) for task in tasks]
    return [*found, *(_of_command(facts, one) for one in facts.outcomes)] if facts.each else found


def _of_command(facts: Facts, one: Outcomes) -> Numbers:
    """Return what a command measured of a task, at every λ."""
    metrics = list(one.cells)[:COMMAND_METRICS]
    every_lam = sorted({lam for metric in metrics for lam in one.cells[metric]}, key=order)
    rows = []
    for lam in every_lam[:ROWS]:
        cells = [one.cells[metric].get(lam, Cell(None, None, None, 0)) for metric in metrics]
        role = facts.role_of(lam)
        documents = str(max(cell.n for cell in cells) or _MISSING)
        rows.append((lam, role if role != "other λ" else "", documents, *(_text(cell, _PLAIN) for cell in cells)))
    return Numbers(one.name, ("λ", "", "documents", *metrics), tuple(rows), len(every_lam) - len(rows))


def _of_task(facts: Facts, task: TaskFacts, every: bool) -> Numbers:
    kind = task.kind
    measures = drawn_measures(kind, facts.confidence_of(task))
    every_lam = [lam for lam in task.record.lambdas if lam in {*task.lambdas, *task.partial}]
    if task.is_answered:  # a task with one output has no votes, and one without an end of thinking no thoughts
        measures = tuple(one for one in measures if any(task.cell(lam, one.metric).n for lam in every_lam))
    notable = {point.lam for point in task.frontier.points if point.on_frontier} if task.frontier else set()
    star = task.frontier.chosen.lam if task.frontier else None
    named = {*notable, *task.apart, star}
    shown = [lam for lam in every_lam if every or lam in named or facts.role_of(lam) != "other λ"]
    rows = []
    for lam in shown:
        marks = [facts.role_of(lam) if facts.role_of(lam) != "other λ" else "", "λ*" if lam == star else ""]
        marks += ["frontier" if lam in notable else "", "partial" if lam in task.partial else ""]
        marks += ["apart" if lam in task.apart else ""]
        cells = [_text(task.cell(lam, measure.metric), measure) for measure in measures]
        documents = task.cell(lam, COUNTED[kind]).n
        rows.append((lam, ", ".join(filter(None, marks)), str(documents), *cells))
    header = ("λ", "", "prompts" if task.is_sampled else "documents", *(measure.title for measure in measures))
    return Numbers(task.name, header, tuple(rows), len(every_lam) - len(shown))


def _text(cell: Cell, measure: Measure) -> str:
    if cell.value is None:
        return _MISSING
    value = "∞" if cell.plottable is None else format(cell.value, measure.form)
    if cell.low is None or cell.high is None:
        return value
    return f"{value} [{cell.low:{measure.form}}, {cell.high:{measure.form}}]"
