"""Facts are the tables of a run as its report shows them: for one confidence, at the finished λs, task by task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from calibration.analyse import Analysis
from calibration.catalogue import ACCURACY, Task, is_once, kind_of
from calibration.frontier.frontier import Frontier
from calibration.lm_eval_rows import LEFT_OUT, PREFIX
from calibration.measured_rows import tool_of
from calibration.metrics.cumulative import Walk
from calibration.scores.confidences import choice_confidence, confidence_of, confidences_in
from contract.points import coordinates, order
from contract.records import EachRecord, Plan, TaskRecord
from contract.schemas import point_of

MAX_BIN_ROWS = 12_000  # a page shows at most so many bins, which take half a megabyte


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell is one number of the metrics table."""

    value: float | None  # the number, which may be infinite
    low: float | None
    high: float | None
    n: int

    @property
    def plottable(self) -> float | None:
        """Return the value if it can be drawn, otherwise None."""
        return self.value if self.value is not None and math.isfinite(self.value) else None


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """These are the facts of one task."""

    name: str
    record: TaskRecord
    kind: Task  # how the task is scored, or pool for several choice tasks; choices where nothing is scored yet
    lambdas: tuple[str, ...]  # the finished λs, ascending: every document is scored, or known not to be
    partial: tuple[str, ...]  # the λs that are begun and not finished, ascending
    cells: Mapping[tuple[str, str, str], Cell]  # the numbers by λ, metric and split
    frontier: Frontier | None
    apart: tuple[str, ...]  # the λs that are compared with none [analyse.Analysis.apart]

    @property
    def is_sampled(self) -> bool:
        """Tell whether this is a generate task, which has neither choices nor a continuation."""
        return self.record.is_sampled

    @property
    def is_answered(self) -> bool:
        """Tell whether the model writes its answers."""
        return self.record.is_answered

    @property
    def is_continuation(self) -> bool:
        """Tell whether there is nothing to choose from."""
        return self.kind == "continuation"

    @property
    def is_pool(self) -> bool:
        """Tell whether this is not a task, but several that are pooled."""
        return self.kind == "pool"

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the λs of the plan at which nothing of the task is committed."""
        return tuple(lam for lam in self.record.lambdas if lam not in {*self.lambdas, *self.partial})

    def cell(self, lam: str, metric: str, split: str = "all") -> Cell:
        """Return a number of the task; where there is none, return a cell without a value."""
        return self.cells.get((lam, metric, split), Cell(None, None, None, 0))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Holds what lm-eval, or another evaluator, says of a task or group."""

    name: str
    cells: Mapping[str, Mapping[str, Cell]]
    """The numbers by lm-eval's name of the metric (`acc_norm,none`), or another's (`inspect/…`, `command/…`), and by λ."""


@dataclass(frozen=True, slots=True)
class Facts:
    """These are the facts of a run."""

    tasks: tuple[TaskFacts, ...]  # the tasks in the order of the plan, then the pools
    grid: tuple[str, ...]  # the λs that any task has finished, ascending
    confidence: str  # of choices
    asked_confidence: str  # of written answers that have it
    error: str  # the calibration error of the frontier
    bins: pa.Table  # the rows of schemas.BINS for these confidences, split all and finished λs
    stops: tuple[str, ...]  # the λs that the slider stops at: the whole grid, unless that is too much for a page
    parents: Mapping[str, str]  # the point of each parent that is on the line
    judged_elsewhere: tuple[str, ...]
    """The tasks that have only lm-eval's metrics, because their documents are neither choices nor one continuation each."""
    outcomes: tuple[Outcomes, ...]
    walks: Mapping[tuple[str, str], Walk]  # the cumulative differences under `confidence`, by task and λ
    damaged: tuple[str, ...] = ()  # a line for each damaged table
    each: EachRecord | None = None  # the command that measured everything, where one did
    base: str = "base"  # the parents' own names
    aligned: str = "aligned"

    @property
    def pair(self) -> str:
        """Return the name of the pair."""
        return f"{self.base} → {self.aligned}"

    @property
    def accuracy(self) -> str:
        """Return the name of the metric that is the accuracy."""
        return ACCURACY[self.confidence]

    @property
    def choice_tasks(self) -> tuple[TaskFacts, ...]:
        """Return the choice tasks that have a finished λ, and the pools of them."""
        others = [task for task in self.tasks if task.is_continuation or task.is_sampled or task.is_answered]
        return tuple(task for task in self.tasks if task.lambdas and task not in others)

    @property
    def answer_tasks(self) -> tuple[TaskFacts, ...]:
        """Return the tasks whose answers are written that have a finished λ."""
        return tuple(task for task in self.tasks if task.lambdas and task.is_answered)

    def confidence_of(self, task: TaskFacts) -> str:
        """Return the confidence that a task is shown under."""
        return (
            confidence_of(confidences_in(task.record), self.asked_confidence) if task.is_answered else self.confidence
        )

    @property
    def continuation_tasks(self) -> tuple[TaskFacts, ...]:
        """Return the continuation tasks that have a finished λ."""
        return tuple(task for task in self.tasks if task.lambdas and task.is_continuation)

    @property
    def generate_tasks(self) -> tuple[TaskFacts, ...]:
        """Return the generate tasks that have a finished λ."""
        return tuple(task for task in self.tasks if task.lambdas and task.is_sampled)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Return the λs at which a command was asked to run, and has measured nothing."""
        return tuple(lam for lam in self.each.lambdas if lam not in self.every_lam) if self.each else ()

    @property
    def every_lam(self) -> tuple[str, ...]:
        """Return the grid together with the λs that only lm-eval's metrics are known at."""
        judged = {lam for one in self.outcomes for cells in one.cells.values() for lam in cells}
        return tuple(sorted({*self.grid, *judged}, key=order))

    @property
    def frontiers(self) -> tuple[tuple[str, Frontier], ...]:
        """Return every frontier with its title; those of pools come first."""
        found = sorted(self.tasks, key=lambda task: (not task.is_pool, task.is_answered))
        return tuple((task.name, task.frontier) for task in found if task.frontier)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Return the names of the points' coordinates; there are none where a point is one λ."""
        return tuple(filter(None, coordinates(self.parents["base"])))

    def role_of(self, lam: str) -> str:
        """Return the name of the parent that a λ is, or `other λ`."""
        return next((name for name, parent in self.parents.items() if parent == lam), "other λ")

    def mark_of(self, lam: str) -> str:
        """Return the role of a λ as one of `style.ROLES`, where every aligned parent is `aligned`."""
        role = self.role_of(lam)
        return "aligned" if role in self.coordinates else role

    def stop(self, lam: str) -> int:
        """Return the place of a λ among the stops of the slider, or −2 where it is no stop."""
        return self.stops.index(lam) if lam in self.stops else -2

    @property
    def start(self) -> int:
        """Return the stop at which the slider starts, which is λ* where there is one."""
        return self.stop(self.chosen) if self.chosen else 0

    @property
    def chosen(self) -> str | None:
        """Return λ* of all tasks pooled, or of the only task that has one."""
        return self.frontiers[0][1].chosen.lam if self.frontiers else None


def gather(analysis: Analysis, error: str, confidence: str) -> Facts:
    """Put together what a report shows.

    Args:
        analysis: the run's analysis.
        error: the calibration error that its frontiers hold accuracy against.
        confidence: the confidence of that error and accuracy; a task that has no such confidence takes sum.
    """
    cells: dict[str, dict[tuple[str, str, str], Cell]] = {}
    outcomes: dict[str, dict[str, dict[str, Cell]]] = {}
    asked, confidence = confidence, choice_confidence(analysis.plan, confidence)
    written = {
        name: confidence_of(confidences_in(record), asked)
        for name, record in analysis.plan.items()
        if record.is_answered
    }
    wanted = pc.is_in(analysis.metrics["confidence"], pa.array({"sum", confidence, *written.values()}))
    for row in analysis.metrics.filter(wanted).to_pylist():
        lam, metric = point_of(row), row["metric"]
        cell = Cell(row["value"], row["ci_low"], row["ci_high"], row["n"])
        if tool_of(metric):
            if metric != LEFT_OUT:
                outcomes.setdefault(row["task"], {}).setdefault(metric.removeprefix(PREFIX), {})[lam] = cell
            continue
        of_task = cells.setdefault(row["task"], {})
        key = lam, metric, row["split"]
        # Metrics that are the same for all confidences are stored under sum only, and so are all of a task with one
        # confidence. At some λs written answers may lack the confidence that they are shown under: there they have none.
        used = written.get(row["task"], confidence)
        stands_in = row["task"] not in written or is_once(metric, "answers")
        if row["confidence"] == used or (row["confidence"] == "sum" and stands_in and key not in of_task):
            of_task[key] = cell
    found = analysis.found
    frontiers = {one.task: one for one in (*found.tasks, *found.pools)}
    elsewhere = tuple(name for name, record in analysis.plan.items() if record.scored_as == "other")
    records = {name: record for name, record in analysis.plan.items() if name not in elsewhere}
    records |= {name: _pool_record(analysis.plan, members) for name, members in analysis.pools.items()}
    tasks = tuple(
        _task(name, record, cells.get(name, {}), frontiers.get(name), analysis.apart.get(name, ()))
        for name, record in records.items()
    )
    grid = sorted({lam for task in tasks for lam in task.lambdas}, key=order)
    bins = _shown_bins(analysis.bins, tasks, confidence, written)
    stars = {one.chosen.lam for one in frontiers.values()}
    stops = _thinned(grid, len(bins), {*analysis.parents.values(), *stars})
    judged = tuple(Outcomes(name, by_metric) for name, by_metric in outcomes.items())
    return Facts(
        tasks,
        tuple(grid),
        confidence,
        asked,
        error,
        bins,
        stops,
        analysis.parents,
        elsewhere,
        judged,
        {(task, lam): walk for (task, lam, of), walk in analysis.walks.items() if of == confidence == "sum"},
        analysis.damaged,
        analysis.each,
        analysis.sweep.pair["base"].name,
        ", ".join(analysis.sweep.pair[role].name for role in sorted(analysis.sweep.pair.keys() - {"base"})),
    )


def _thinned(grid: Sequence[str], rows: int, kept: set[str]) -> tuple[str, ...]:
    step = -(-rows // MAX_BIN_ROWS) or 1
    return tuple(lam for place, lam in enumerate(grid) if place % step == 0 or lam in kept)


def _pool_record(plan: Plan, members: Sequence[str]) -> TaskRecord:
    shared = set.intersection(*(set(plan[name].lambdas) for name in members))
    return TaskRecord(tuple(sorted(shared, key=order)), documents=sum(plan[name].documents or 0 for name in members))


def _task(
    name: str,
    record: TaskRecord,
    cells: Mapping[tuple[str, str, str], Cell],
    found: Frontier | None,
    apart: tuple[str, ...],
) -> TaskFacts:
    lambdas = sorted({lam for lam, _, _ in cells}, key=order)
    partial = {lam for lam in lambdas if cells[lam, "docs_unfinished", "all"].value}
    kind = kind_of(metric for _, metric, _ in cells)
    finished = tuple(lam for lam in lambdas if lam not in partial)
    return TaskFacts(name, record, kind, finished, tuple(lam for lam in lambdas if lam in partial), cells, found, apart)


def _shown_bins(bins: pa.Table, tasks: tuple[TaskFacts, ...], confidence: str, written: Mapping[str, str]) -> pa.Table:
    of = pc.or_(
        pc.equal(bins["events"], "tokens"),
        pc.and_(pc.equal(bins["events"], "documents"), pc.equal(bins["confidence"], confidence)),
    )
    for task, used in written.items():
        of_task = pc.and_(pc.equal(bins["events"], "answers"), pc.equal(bins["task"], task))
        of = pc.or_(of, pc.and_(of_task, pc.equal(bins["confidence"], used)))
    bins = bins.filter(pc.and_(of, pc.equal(bins["split"], "all")))
    finished = {(task.name, lam) for task in tasks for lam in task.lambdas}
    places = bins.select(["task", "lam", "point"]).to_pylist()
    keys = [(row["task"], point_of(row)) for row in places]
    return bins.filter(pa.array([key in finished for key in keys], pa.bool_()))
