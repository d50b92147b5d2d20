"""This module reads what a command measured: its metrics.json, lm-evaluation-harness's results and logs of Inspect.

Each reader is a pure function from parsed JSON to `Measured` rows. The shapes are those that lm-eval 0.4.13
(`lm_eval.result_schema.EvalResults`) and Inspect (`inspect_ai.log.EvalLog`, version 2 of its format) write.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.json_objects import keys_once

OWN = "metrics.json"
LM_EVAL, INSPECT, COMMAND = "lm_eval", "inspect", "command"  # tools; in the tables a metric's name begins with its tool
_STDERR = "_stderr"
_DOCUMENTS = "n"
# The standard error of an Inspect scorer belongs to these metrics, which are both the mean over samples.
_MEANS = ("accuracy", "mean")
_INSPECT_ERRORS = ("stderr", "bootstrap_stderr")
_MOST = 2**63 - 1  # the greatest number of documents that the tables can hold
_LOGS = "logs"  # the folder that INSPECT_LOG_DIR names
# Files of lm-eval and Inspect begin like this, and so does one that was cut short.
_BEGINS = re.compile(rb'\s*\{\s*"(version"\s*:\s*\d+\s*,\s*"status"|results"\s*:\s*\{)')
_NONE = (
    f'it left no results in $LAMBDASWEEP_OUT: write {OWN} there ({{"task": {{"metric": value}}}}), or lm-eval\'s results or '
    "Inspect's JSON logs"
)


class ResultsError(InputError):
    """The files that a command left behind cannot be taken as its results."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One number that a command measured."""

    task: str
    tool: str  # LM_EVAL, INSPECT or COMMAND
    metric: str  # the tool's own name of it
    value: float | None  # None where the tool says NaN or infinity
    standard_error: float | None  # None where the tool gives none
    n: int  # documents or samples, as the tool counts them; 0 where it does not tell
    file: str  # the file that it was read from, relative to the command's directory


def collect(folder: Path) -> list[Measured]:
    """Read everything that a command left in its directory, sorted by task, tool and metric.

    metrics.json counts at the top only; files of lm-eval and Inspect are known by what is in them, wherever they lie.

    Args:
        folder: the directory.

    Raises:
        ResultsError: there is nothing, a file is broken, an Inspect log is not finished, or two files say different numbers
            of the same metric; with all problems.
    """
    problems: list[str] = []
    found: list[Measured] = []
    logs: list[tuple[str, Mapping[str, Any]]] = []
    for path in sorted(folder.rglob("*.json")):
        name = str(path.relative_to(folder))
        try:
            once = keys_once if name == OWN else None  # files of tools are as the tools write them
            value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
        except (OSError, ValueError, RecursionError) as error:  # JSON that is nested too deep raises the last of these
            if name == OWN or path.name.startswith("results_") or _was_a_log(path, folder):
                problems.append(f"{name} is broken: {error}")
            continue
        if name == OWN:
            try:
                found += of_command(value, name)
            except ResultsError as error:
                problems += error.problems
            except OverflowError as error:
                problems.append(f"{name} cannot be used: {error}")
        elif is_of_lm_eval(value):
            found += _read(of_lm_eval, value, name, problems)
        elif is_of_inspect(value):
            logs.append((name, value))
    found += _finished(logs, problems)
    if not found and not problems:
        problems.append(_NONE)
        if packed := sorted(folder.rglob("*.eval")):
            name = str(packed[0].relative_to(folder))
            problems.append(
                f"{name} is a log of Inspect that is not JSON: let Inspect write JSON (INSPECT_LOG_FORMAT=json)"
            )
    merged: dict[tuple[str, str, str], Measured] = {}
    for one in found:
        key = one.task, one.tool, one.metric
        before = merged.setdefault(key, one)
        if (before.value, before.standard_error, before.n) != (one.value, one.standard_error, one.n):
            problems.append(
                f"{one.metric} of {one.task} is {before.value} in {before.file} and {one.value} in {one.file}"
            )
    if problems:
        raise ResultsError("its results cannot be used", problems)
    return [merged[key] for key in sorted(merged)]


def compare_with(measured: Iterable[Measured], others: Collection[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Hold which metrics there are at one λ against those of other λs.

    Args:
        measured: what was measured at this λ.
        others: the task and the metric, with the tool before it (`lm_eval/acc,none`), of everything that other λs have.

    Returns:
        The names that are missing here, and the names that are here alone, sorted. Without other λs no name is here alone.
    """
    here = {(one.task, f"{one.tool}/{one.metric}") for one in measured}
    missing = [f"{metric} of {task}" for task, metric in sorted(set(others) - here)]
    alone = [f"{metric} of {task}" for task, metric in sorted(here - set(others))] if others else []
    return missing, alone


def of_command(value: Any, file: str = OWN) -> list[Measured]:
    """Read `{"task": {"metric": value}}`.

    A metric may have its standard error beside it as `<metric>_stderr`, and a task its number of documents as `n`. null is a
    metric without a value.

    Raises:
        ResultsError: it has another shape; with all problems.
    """
    if not isinstance(value, dict) or not value:
        raise ResultsError("", [f'{file} is not {{"task": {{"metric": value}}}}'])
    problems, found = list[str](), list[Measured]()
    for task, metrics in value.items():
        if not isinstance(metrics, dict) or not metrics.keys() - {_DOCUMENTS}:
            problems.append(f'{file}: {task} has no metrics: give {{"metric": value}}')
            continue
        wrong = [name for name, one in metrics.items() if not (one is None or _is_number(one))]
        problems += [f"{file}: {name} of {task} is {metrics[name]!r}: give a number or null" for name in wrong]
        count = metrics.get(_DOCUMENTS)
        if count is not None and not (isinstance(count, int) and 0 < count <= _MOST):
            problems.append(f"{file}: n of {task} is {count!r}: give the number of documents")
        if problems:
            continue
        for name in metrics:
            if name == _DOCUMENTS or name.removesuffix(_STDERR) in metrics.keys() - {name}:
                continue
            error = _finite(metrics.get(name + _STDERR))
            if error is not None and error < 0:
                problems.append(f"{file}: {name}{_STDERR} of {task} is {error:g}: a standard error is 0 or more")
            found.append(Measured(task, COMMAND, name, _finite(metrics[name]), error, count or 0, file))
    if problems:
        raise ResultsError("", problems)
    return found


def is_of_lm_eval(value: Any) -> bool:
    """Tell whether parsed JSON is what lm-eval writes as `results_<time>.json`."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("results"), dict)
        and all(isinstance(one, dict) for one in value["results"].values())
        and {"configs", "versions", "n-shot"} <= value.keys()
    )


def of_lm_eval(value: Mapping[str, Any], file: str) -> list[Measured]:
    """Read lm-eval's results: every number `<metric>,<filter>` of tasks and groups, with its `<metric>_stderr,<filter>`."""
    found = []
    counts = value.get("n-samples") or {}
    for task, metrics in value["results"].items():
        documents = (counts.get(task) or {}).get("effective") or metrics.get("sample_len") or 0
        of_group = metrics.get("sample_count") or {}
        for key, number in metrics.items():
            name, comma, filtered = key.partition(",")
            if not comma or name.endswith(_STDERR) or not _is_number(number):
                continue
            # lm-eval writes "N/A" where it has no standard error.
            error = _finite(metrics.get(f"{name}{_STDERR},{filtered}"))
            n = of_group.get(key, documents)
            found.append(Measured(task, LM_EVAL, key, _finite(number), error, _documents(n), file))
    return found


def is_of_inspect(value: Any) -> bool:
    """Tell whether parsed JSON is a log of Inspect."""
    return (
        isinstance(value, dict)
        and {"version", "status", "eval"} <= value.keys()
        and isinstance(value["eval"], dict)
        and isinstance(value["eval"].get("task"), str)
    )


def of_inspect(value: Mapping[str, Any], file: str) -> list[Measured]:
    """Read a finished log of Inspect: every metric of every scorer, as `<scorer>/<metric>`.

    A scorer whose scores of several epochs are put together by a reducer has `<scorer>/<reducer>/<metric>`. The scorer's
    `stderr` is the standard error of its `accuracy` and `mean`.
    """
    found = []
    results = value.get("results") or {}
    for score in results.get("scores") or ():
        metrics = {name: one.get("value") for name, one in (score.get("metrics") or {}).items()}
        error = next((_finite(metrics[name]) for name in _INSPECT_ERRORS if name in metrics), None)
        n = score.get("scored_samples")
        n = results.get("completed_samples") if n is None else n
        scorer = "/".join(filter(None, [score["name"], score.get("reducer")]))
        for name, number in metrics.items():
            if name in _INSPECT_ERRORS or not _is_number(number):
                continue
            known = error if name in _MEANS else None
            found.append(
                Measured(
                    value["eval"]["task"], INSPECT, f"{scorer}/{name}", _finite(number), known, _documents(n or 0), file
                )
            )
    return found


def _read(
    reader: Callable[[Mapping[str, Any], str], list[Measured]],
    value: Mapping[str, Any],
    name: str,
    problems: list[str],
) -> list[Measured]:
    """Read a file whose tool does not always keep to its shape: an error of any kind fails this λ, and no other."""
    try:
        return reader(value, name)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problems.append(f"{name} cannot be used: {type(error).__name__}: {error}")
        return []


def _finished(logs: list[tuple[str, Mapping[str, Any]]], problems: list[str]) -> Iterator[Measured]:
    """Yield the metrics of finished logs. Another log is a problem, unless its task was tried again with success.

    Inspect also calls a log a success if some samples failed, where --fail-on-error allows so many.
    """
    done = {value["eval"]["task"] for _, value in logs if value["status"] == "success" and not _failed_samples(value)}
    for name, value in logs:
        task, status = value["eval"]["task"], value["status"]
        if status == "success" and (failed := _failed_samples(value)):
            if task not in done:
                problems.append(f"{name}: Inspect's log of {task} lacks {failed} of its samples, which failed")
        elif status == "success":
            before = len(problems)
            rows = _read(of_inspect, value, name, problems)
            if not rows and len(problems) == before:
                problems.append(f"{name}: Inspect's log of {task} has no metrics")
            yield from rows
        elif task not in done:
            problems.append(f"{name}: Inspect's log of {task} has the status {status}")


def _failed_samples(value: Mapping[str, Any]) -> int:
    results = value.get("results") or {}
    total, completed = results.get("total_samples"), results.get("completed_samples")
    return max(0, total - completed) if isinstance(total, int) and isinstance(completed, int) else 0


def _was_a_log(path: Path, folder: Path) -> bool:
    """Tell whether a file that cannot be read as JSON lies where Inspect's logs do, or begins like a file of results."""
    if path.relative_to(folder).parts[0] == _LOGS:
        return True
    try:
        with open(path, "rb") as file:
            return _BEGINS.match(file.read(1024)) is not None
    except OSError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float | None:
    """Return a number, or None for NaN, for the infinities, and for a value that is no number.

    Raises:
        OverflowError: it is a whole number that is too large for a float.
    """
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _documents(value: Any) -> int:
    if not 0 <= int(value) <= _MOST:
        raise OverflowError(f"{value} is no number of documents")
    return int(value)
