"""This module computes, for a generate task, the diversity of its samples at every λ."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from calibration.arrays import Floats
from calibration.metrics.choice_tasks import Estimates
from calibration.metrics.diversity import DIVERSITY, diversity
from calibration.scores.per_document import LeftOut
from calibration.task_at_lambda import TaskMetrics
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import SPLITS, Resamples, draw
from contract import points, schemas
from contract.errors import LambdasweepError
from contract.records import TaskRecord
from contract.rundir import RunDir
from contract.whole_tables import read_or_problem

_AT_ONCE = 1000  # the texts of so many prompts are in memory at a time


def diversity_metrics(
    run: RunDir, task: str, record: TaskRecord, parents: Mapping[str, str], resamples: int, seed: int
) -> Iterator[TaskMetrics]:
    """Yield every λ of a generate task that has anything committed, ascending.

    Values are means over the prompts that have a value; a difference to a parent is taken over the prompts that have one at
    both λs.

    Args:
        run: the run.
        task, record: of its plan.
        parents: λs of those that are on the line.
        resamples, seed: as in `analyse.analyse`.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    kinds = ("generations", "quarantine")
    there = sorted(
        (lam for lam in record.lambdas if any(run.committed(task, lam, kind) for kind in kinds)),
        key=points.order,
    )
    if not there:
        return
    path = run.requests(task)
    if not path.is_file():
        raise LambdasweepError(
            f"{run.root}: task {task!r}: {path} is missing: restore it, or run the same sweep again to write it"
        )
    requests, problem = read_or_problem(path)
    if requests is None:
        raise LambdasweepError(f"{path} {problem}: run the same sweep again, which writes it anew")
    count = len(requests)
    drawn = draw(task, count, resamples, seed)
    found: dict[str, tuple[Floats, LeftOut]] = {}
    for lam in there:
        found[lam] = _of_prompts(run, task, lam, count, record.samples or 1)
    parents = {name: lam for name, lam in parents.items() if lam in found}
    for lam, (values, left_out) in found.items():
        estimates = _estimates("", values, drawn)
        for name, parent in parents.items():
            if parent != lam:
                estimates |= _estimates(f"_vs_{name}", values - found[parent][0], drawn)
        yield TaskMetrics(lam, estimates, left_out, count, [])


def _of_prompts(run: RunDir, task: str, lam: str, prompts: int, samples: int) -> tuple[Floats, LeftOut]:
    """Return the metrics [P, 5] of the prompts at one λ, NaN for prompts without samples; and how many are left out."""
    table = run.generations(task, lam)
    prompt = table["request_id"].to_numpy()
    out = np.unique(run.quarantine(task, lam)["request_id"].to_numpy())
    counts = np.bincount(prompt, minlength=prompts) if len(prompt) else np.zeros(prompts, np.int64)
    whole = np.isin(counts, (0, samples)).all() and (np.diff(prompt) >= 0).all() and len(counts) == prompts
    whole = whole and all(
        set(table[name].unique().to_pylist()) <= {value} for name, value in schemas.place(lam).items()
    )
    if not whole or (out >= prompts).any() or counts[out].any():
        raise LambdasweepError(
            f"{run.root}: task {task!r} at λ = {lam}: its generations do not fit its prompts: delete them, and run the "
            "same sweep again"
        )
    unfinished = prompts - int((counts > 0).sum()) - len(out)
    found = []
    for first in range(0, prompts, _AT_ONCE):
        last = min(first + _AT_ONCE, prompts)
        begin, end = np.searchsorted(prompt, [first, last])
        texts = table["text"].slice(begin, end - begin).to_pylist()
        found.append(diversity(prompt[begin:end] - first, texts, last - first))
    return np.concatenate(found), LeftOut(len(out), unfinished)


def _estimates(suffix: str, values: Floats, drawn: Resamples) -> Estimates:
    """Return the mean over prompts of each metric [P, 5] on every split, and in every resample."""
    found: Estimates = {}
    size = len(DIVERSITY)
    exists = ~np.isnan(values)
    # `both` [prompts, 10] holds the values and whether they exist. A sparse product sums in one order on every machine.
    both = np.hstack([np.where(exists, values, 0.0), exists])
    for split in SPLITS:
        part = {"all": np.ones(len(values), np.bool_), "select": ~drawn.in_report, "report": drawn.in_report}[split]
        matrix = scipy.sparse.csr_matrix(both[part].T)
        sums = np.hstack([matrix @ chunk.astype(np.float64) for chunk in drawn.chunks(np.flatnonzero(part))])
        itself = matrix @ np.ones(int(part.sum()))
        with np.errstate(invalid="ignore"):
            resampled, means = sums[:size] / sums[size:], itself[:size] / itself[size:]
        for at, metric in enumerate(DIVERSITY):
            n = int(itself[size + at])
            found[f"{metric}{suffix}", "sum", split] = Estimate(float(means[at]), resampled[at], n)
    return found


def by_lambda(metrics: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Return the points of each generate task in order, each with its metrics over all prompts: value, low and high.

    Args:
        metrics: the metrics table, schemas.METRICS, as `analyse.analyse` returns it.
    """
    wanted = pc.and_(pc.equal(metrics["split"], "all"), pc.is_in(metrics["metric"], pa.array(DIVERSITY)))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in metrics.filter(wanted).to_pylist():
        point = found.setdefault(row["task"], {}).setdefault(schemas.point_of(row), {"prompts": row["n"]})
        point[row["metric"]] = {"value": row["value"], "low": row["ci_low"], "high": row["ci_high"]}
        point["prompts"] = max(point["prompts"], row["n"])
    return {task: [_named(lam) | point for lam, point in rows.items()] for task, rows in found.items()}


def _named(lam: str) -> dict[str, str | None]:
    return {"lam": None, "point": lam} if points.is_named(lam) else {"lam": lam}
