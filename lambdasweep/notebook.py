"""This module gives notebooks a run's tables as Arrow, which DuckDB, polars and pandas read as they are."""

import math
import os
import warnings
from collections.abc import Collection, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from contract import schemas
from contract.damage import describe
from contract.errors import InputError
from contract.grid import MAX_DECIMALS
from contract.location import read_json, read_table
from contract.points import ONLY, order, parse_point
from contract.records import read_plan, read_sweep
from contract.rundir import RunDir
from contract.schemas import of_documents

if TYPE_CHECKING:
    import altair as alt

    from lambdasweep.tasks.tokens import Tokenizer

Lam = str | int | float | Decimal

_TASK = pa.field("task", pa.string(), nullable=False)
_FRONTIER = pa.schema(
    [
        _TASK,  # or what is pooled: `all tasks`, or a group of lm-eval
        *schemas.PLACE,
        pa.field("documents", pa.int64(), nullable=False),
        *(
            pa.field(f"{name}{end}", pa.float64())
            for name in ("accuracy", "nll", "error")
            for end in ("", "_ci_low", "_ci_high")
        ),
        pa.field("on_frontier", pa.bool_(), nullable=False),
        pa.field("membership", pa.float64()),  # the share of the resamples in which λ is on the frontier
        pa.field("chosen", pa.bool_(), nullable=False),  # whether λ is λ*
        pa.field("p_accuracy", pa.float64()),  # the p-value that λ is more accurate than both parents
        pa.field("p_error", pa.float64()),  # the p-value that λ is better calibrated than both parents
    ]
)


class Run:
    """A run directory. Everything but `plot_reliability` returns a `pyarrow.Table`.

    A `task` or `lam` that is not given means all of the plan; λ is a decimal like "0.35", 0.35 or 1. Over several aligned
    checkpoints it is a point like "dpo=0.5,sft=0.25". Every table has it as text in a column `point`, and as a number in
    `lam`, which is null where a point has several coordinates.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Open a run directory.

        Raises:
            InputError: there is none.
        """
        self._run = RunDir(root)
        self._sweep = read_sweep(self._run)
        self._names = self._sweep.names
        self._plan = read_plan(self._run)

    def __repr__(self) -> str:
        tasks = ", ".join(f"{name} ({len(record.lambdas)} λ)" for name, record in self._plan.items())
        return f"<run {self._run.root}: {tasks}>"

    def metrics(self) -> pa.Table:
        """Return schemas.METRICS as `lambdasweep run` or `report` last computed it.

        Raises:
            InputError: it never was, or by another version.
        """
        if not self._run.metrics_parquet.is_file():
            raise InputError(f"{self._run.metrics_parquet} is not there: {self._remedy}")
        table = schemas.with_point(read_table(self._run.metrics_parquet)).replace_schema_metadata(None)
        if not table.schema.equals(schemas.METRICS):
            raise InputError(f"{self._run.metrics_parquet} was written by another version: {self._remedy}")
        return table

    def frontier(self) -> pa.Table:
        """Return accuracy, NLL and calibration error of every λ, as `lambdasweep report` last computed it.

        One row per task (and pool of tasks) and λ: documents, accuracy, nll and error with 95 % intervals, on_frontier,
        membership, chosen, p_accuracy, p_error; what they are is said in `calibration.frontier.frontier`.

        Raises:
            InputError: it never was.
        """
        rows = []
        for one in self._frontiers():
            for point in one["points"]:
                ends = {
                    f"{name}{suffix}": point[name][key]
                    for name in ("accuracy", "nll", "error")
                    for suffix, key in (("", "value"), ("_ci_low", "low"), ("_ci_high", "high"))
                }
                kept = {
                    name: point[name] for name in ("documents", "on_frontier", "membership", "p_accuracy", "p_error")
                }
                own = {
                    "task": one["task"],
                    **schemas.place(schemas.point_of(point)),
                    "chosen": schemas.point_of(point) == schemas.point_of(one["chosen"]),
                }
                rows.append(own | kept | ends)
        return pa.Table.from_pylist(rows, schema=_FRONTIER)

    def answers(self) -> dict[str, str]:
        """Return the answer in a few sentences, by task and by pool of tasks; raises as `frontier`."""
        return {one["task"]: one["answer"] for one in self._frontiers()}

    def claims(self) -> dict[str, str]:
        """Return whether a λ between the parents is better than both, with the evidence, by task and by pool of tasks.

        It is said where both parents and a λ between them are finished; raises as `frontier`.
        """
        return {one["task"]: one["claim"]["text"] for one in self._frontiers() if one["claim"]}

    def tokens(self, task: str | None = None, lam: Lam | None = None) -> pa.Table:
        """Return the committed rows of schemas.TOKENS, with the task in front.

        Raises:
            InputError: the plan has no such task, or the task no such λ.
        """
        tables = [_named(name, self._run.tokens(name, one)) for name, one in self._points(task, lam)]
        _tell(self._run)
        return pa.concat_tables([_named("", schemas.TOKENS.empty_table()), *tables])

    def generations(self, task: str | None = None, lam: Lam | None = None) -> pa.Table:
        """Return the committed rows of schemas.GENERATIONS, with the task in front; those of schemas.P_TRUE where they are.

        Raises:
            InputError: the plan has no such generate task, or the task no such λ.
        """
        points = self._points(task, lam, "generations")
        tables = [_named(name, self._run.generations(name, one)) for name, one in points]
        _tell(self._run)
        return _joined([_named("", schemas.GENERATIONS.empty_table()), *tables])

    def graded(self, task: str | None = None, lam: Lam | None = None) -> pa.Table:
        """Return what became of written answers, one row for each output, with the task in front.

        It has the columns of schemas.GENERATIONS, then those of schemas.GRADED: answer, answer_class, answer_start, correct,
        metrics, thinking_tokens, answer_end, and verbalised where it was looked for. A λ is there when all of its outputs
        are.

        Raises:
            InputError: the plan has no such task whose answers are written, or the task no such λ.
        """
        written = {name for name, record in self._plan.items() if record.is_answered}
        if task is not None and task in self._plan and task not in written:
            raise InputError(
                f"task {task!r} has no written answers: give one of {', '.join(sorted(written)) or 'another run'}"
            )
        own = [field for field in schemas.GRADED if field.name not in schemas.GENERATIONS.names]
        empty = schemas.GENERATIONS.empty_table()
        for field in own:
            empty = empty.append_column(field, pa.array([], field.type))
        tables = [_named("", empty)]
        for name, one in self._points(task, lam, "generations"):
            generations, graded = self._run.generations(name, one), self._run.graded(name, one)
            if name not in written or len(graded) != len(generations):
                continue
            for field in (*own, schemas.VERBALISED):
                if field.name in graded.column_names:
                    generations = generations.append_column(field, graded[field.name])
            tables.append(_named(name, generations))
        _tell(self._run)
        return _joined(tables)

    def rescored(self, task: str, lam: Lam, under: Lam) -> pa.Table:
        """Return what another λ makes of the outputs of a task at a λ, as schemas.RESCORED.

        Raises:
            InputError: the plan has no such task, or the task no such λ, or its outputs were not scored under the other.
        """
        ((name, one),) = self._points(task, lam, "generations")
        known = self._plan[name].rescored
        point = _point(under, self._names)
        if point not in known:
            raise InputError(
                f"what task {name!r} wrote is not scored under λ = {point}, but under {', '.join(known) or 'no other'}: "
                f"`lambdasweep run … --rescore {point}` does that"
            )
        table = self._run.rescored(name, one, point)
        _tell(self._run)
        return table

    def explode(self, task: str | None = None, lam: Lam | None = None) -> pa.Table:
        """Return one row for each scored token.

        Columns: task, request_id, lam, point, position, token_id, logprob (nats), rank, top1_id, top1_logprob. Raises as
        `tokens`.
        """
        from calibration.row_views import EXPLODED, explode
        from calibration.scores.documents import CONTINUATION_COLUMNS

        tables = [_named("", EXPLODED.empty_table())]
        requests: dict[str, pa.Table] = {}
        for name, one in self._points(task, lam):
            if name not in requests:
                columns = [*CONTINUATION_COLUMNS, "choice"]
                requests = {name: of_documents(read_table(self._run.requests(name), columns=columns))}
            tokens = self._run.tokens(name, one)
            tokens = tokens.filter(pc.less(tokens["request_id"], len(requests[name])))
            tables.append(_named(name, explode(tokens, requests[name])))
        _tell(self._run)
        return pa.concat_tables(tables)

    def examples(
        self,
        task: str | None = None,
        lam: Lam | None = None,
        confidence: str = "sum",
        texts: bool | str | os.PathLike[str] = False,
    ) -> pa.Table:
        """Return one row for each evaluated document.

        Columns: task, lam, point, doc_id, split, gold, prediction, confidence, correct, nll (nats), brier, probabilities (of
        each choice). With texts: question, choices, and tokens (those of each choice), decoded.

        Args:
            task, lam: of the plan.
            confidence: made of the log-probability of a choice (`sum`), that per token (`tokens`) or per byte (`bytes`).
            texts: whether to decode what the engine was given, which takes transformers and the tokenizer that the run
                recorded; the directory of that tokenizer, where it lies elsewhere now.

        Raises:
            InputError: there is no such task, λ or confidence, or no tokenizer to decode texts with.
            LambdasweepError: a table is missing or damaged.
        """
        from calibration.row_views import EXAMPLES, examples
        from calibration.scores.loader import Loader
        from lambdasweep.decoded import FIELDS, decode, with_texts

        tokenizer = self._tokenizer(texts) if texts is not False else None
        schema = EXAMPLES if tokenizer is None else pa.schema([*EXAMPLES, *FIELDS])
        tables = [schema.empty_table()]
        loaders: dict[str, Loader] = {}
        for name, one in self._points(task, lam):
            if name not in loaders:
                loaders = {name: Loader(self._run, name)}
                decoded = decode(of_documents(read_table(self._run.requests(name))), tokenizer) if tokenizer else {}
            found = examples(loaders[name], name, one, confidence)
            tables.append(with_texts(found, decoded) if tokenizer else found)
        _tell(self._run)
        return pa.concat_tables(tables)

    def _tokenizer(self, texts: bool | str | os.PathLike[str]) -> "Tokenizer":
        from lambdasweep.tasks.tokens import load_tokenizer
        from merge.vocabulary import tokenizer_digest

        role = self._sweep.tokenizer or "base"
        source = Path(self._sweep.pair[role].source if isinstance(texts, bool) else os.fspath(texts))
        if not source.is_dir():
            raise InputError(
                f"the tokenizer of {source} is not in a directory of this machine: give texts=DIRECTORY, that of {role}'s"
            )
        recorded = self._sweep.pair[role].tokenizer_sha256
        tokenizer, digest = load_tokenizer(source), tokenizer_digest(source)
        if None not in (recorded, digest) and digest != recorded:
            other = f"{source}/tokenizer.json is not that of the run, and may make other texts of its tokens"
            if isinstance(texts, bool):
                raise InputError(f"{other}: restore it, or give texts=DIRECTORY, that of {role}'s as it was")
            warnings.warn(other, stacklevel=3)
        return tokenizer

    def plot_reliability(self, task: str, lam: Lam, confidence: str = "sum") -> "alt.LayerChart":
        """Draw the reliability diagram of a choice task at one λ; of a continuation task, that of its tokens.

        Raises:
            InputError: there is no such task, λ or confidence, or nothing of it is scored.
            LambdasweepError: a table is missing or damaged.
        """
        from calibration.metrics.reliability_bins import bin_rows, bin_table
        from calibration.report.reliability_figure import bin_dicts, reliability_chart
        from calibration.scores.loader import Loader
        from calibration.uncertainty.resample import draw

        ((_, name),) = self._points(task, lam)
        loader = Loader(self._run, task)
        if confidence not in loader.confidences:
            raise InputError(f"confidence {confidence!r} does not exist: give one of {', '.join(loader.confidences)}")
        documents = loader.documents
        in_report = draw(task, len(documents.sizes), resamples=0).in_report
        bins = bin_table([(task, name, bin_rows(loader.load(name), in_report))])
        of = "tokens" if documents.is_continuation else "documents"
        wanted = pc.and_(
            pc.equal(bins["split"], "all"), pc.equal(bins["confidence"], "sum" if of == "tokens" else confidence)
        )
        rows = list(bin_dicts(bins.filter(wanted), of, [name]))
        if not rows:
            raise InputError(
                f"nothing of task {task!r} is scored at λ = {name} yet: run the sweep on, or give another λ"
            )
        grid = self._plan[task].lambdas  # its ends are those of the colours
        from calibration.report.as_altair import layered

        return layered(
            reliability_chart(rows, grid, of) | {"title": f"{task}, λ = {name}", "width": 320, "height": 320}
        )

    @property
    def _remedy(self) -> str:
        return f"run `lambdasweep report {self._run.root}` first"

    def _frontiers(self) -> list[dict[str, Any]]:
        try:
            found = read_json(self._run.frontier_json)
        except FileNotFoundError:
            raise InputError(f"{self._run.frontier_json} is not there: {self._remedy}") from None
        if "pools" not in found:
            raise InputError(f"{self._run.frontier_json} was written by another version: {self._remedy}")
        return [*found["tasks"], *found["pools"]]

    def _points(self, task: str | None, lam: Lam | None, kind: str = "tokens") -> Iterator[tuple[str, str]]:
        of_kind = [name for name, record in self._plan.items() if record.completion == kind]
        if task is not None and task not in self._plan:
            raise InputError(f"{self._run.root} has no task {task!r}: give one of {', '.join(self._plan)}")
        if task is not None and task not in of_kind:
            raise InputError(
                f"task {task!r} has no {kind}: " + ("it is sampled" if kind == "tokens" else "it is scored")
            )
        wanted = None if lam is None else _point(lam, self._names)
        names = of_kind if task is None else [task]
        found = [(name, one) for name in names for one in self._plan[name].lambdas if wanted in (None, one)]
        if wanted is not None and not found:
            known = sorted({one for name in names for one in self._plan[name].lambdas}, key=order)
            between = "; " if len(self._names) > 1 else ", "
            nearest = min(known, key=lambda one: _distance(one, wanted), default="")
            near = f"; the nearest is {nearest}" if nearest else ""
            raise InputError(f"{self._run.root} has no λ = {wanted}: give one of {between.join(known)}{near}")
        return iter(found)


def _point(lam: Lam, names: Collection[str]) -> str:
    """Return the canonical point that a user means.

    A float that is a λ but for its rounding is that λ: 0.1 + 0.2, which is 0.30000000000000004, means 0.3. Text and
    decimals are exact, and are taken as they are written.

    Raises:
        GridError: it is no point over the aligned checkpoints of these names.
    """
    if isinstance(lam, float) and math.isfinite(lam) and set(names) == {ONLY}:  # those of NumPy, too
        rounded = f"{lam:.{MAX_DECIMALS}f}"
        if not math.isclose(lam, float(rounded), rel_tol=1e-12, abs_tol=1e-12):
            return f"{Decimal(repr(float(lam))):f}"  # no run has it
        lam = rounded
    return parse_point(f"{lam:f}" if isinstance(lam, Decimal) else str(lam), names)


def _distance(one: str, other: str) -> Decimal:
    return sum((abs(a - b) for a, b in zip(order(one), order(other), strict=True)), Decimal())


def _tell(run: RunDir) -> None:
    if run.damaged:
        warnings.warn(f"{run.root}: rows of damaged tables are absent: {'; '.join(describe(run))}", stacklevel=3)


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Return the rows of several tables; columns that some of them lack are null there."""
    return pa.concat_tables(tables, promote_options="default")


def _named(task: str, table: pa.Table) -> pa.Table:
    return table.add_column(0, _TASK, pa.array([task] * table.num_rows, pa.string()))
