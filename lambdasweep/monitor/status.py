"""`lambdasweep status` says which units of a run are done, what they took, and how its driver does. It knows no Ray."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from contract.damage import describe as describe_damage
from contract.damage import look_at_footers
from contract.points import is_named
from contract.records import EachRecord
from contract.rundir import RunDir
from contract.units import rescored_name
from lambdasweep.monitor.heartbeat import DriverState, DriverView, ReplicaReport
from lambdasweep.monitor.run_counts import RunCounts
from lambdasweep.monitor.wording import cost, counted, duration, how, quantity

_SHOWN = 5
_REPLICAS_SHOWN = 16
_LAST_LINES = 2  # of what is said of a command that failed
_FOOTER_SECONDS = 1.0  # a table that was moved there is found when it is read, too
_RECEIPT_SECONDS = 30.0  # a million receipts take longer; the status then counts those that were read


def describe(root: str | os.PathLike[str], counts: RunCounts | None = None) -> Iterator[str]:
    """Yield the lines of the status.

    Args:
        root: of the run.
        counts: what the run has, if that was counted already.

    Raises:
        InputError: `root` holds no sweep.
    """
    if counts is None:
        run = RunDir(root)
        look_at_footers(run, _FOOTER_SECONDS)
        counts = RunCounts(run, _RECEIPT_SECONDS)
    else:
        counts.read_receipts(_RECEIPT_SECONDS)
    run = counts.run
    sweep, engine = counts.sweep, counts.sweep.engine
    for role, parent in sorted(sweep.pair.items(), key=lambda item: (item[0] != "base", item[0])):
        yield f"{role:<8} {parent.source}"
    yield (
        f"engine   vLLM {sweep.versions.get('vllm', '?')} on {engine['device']}, {engine['dtype']}, "
        f"TP {engine['tensor_parallel']}, PP {engine.get('pipeline_parallel', 1)}"
    )
    if counts.each is not None:
        yield from _command_lines(run, counts.each)
        return
    quarantined = run.all_committed("quarantine")
    for name, task in counts.plan.items():
        count = counts.tasks[name]
        yield (
            f"{name}: {count.done.total()}/{count.total} units, {task.documents} documents × {len(task.lambdas)} λ "
            f"({how(task)})"
        )
        for under in task.rescored:
            again = counts.tasks[rescored_name(name, under)]
            yield f"  scored again under λ = {under}: {again.done.total()}/{again.total} units"
        unfinished = [lam for lam in task.lambdas if count.done[lam] < count.shards]
        if unfinished:
            more = f" and {len(unfinished) - _SHOWN} more" if len(unfinished) > _SHOWN else ""
            between = "; " if is_named(unfinished[0]) else ", "
            yield f"  left at λ {between.join(unfinished[:_SHOWN])}{more}"
        reasons: Counter[str] = Counter()
        for part, _, lambdas in task.parts(name):
            for lam in lambdas:
                if (part, lam) in quarantined:
                    reasons.update(run.quarantine(part, lam).column("reason").to_pylist())
        for reason, number in reasons.most_common(_SHOWN):
            yield f"  quarantined: {number} × {reason}"
    yield from damaged(run)
    yield f"{counted(counts.done, 'unit')} done, {counts.total - counts.done} left"
    yield from filter(None, [spent(counts)])
    if counts.total and counts.done >= counts.total and not counts.driver_runs and not run.index_html.is_file():
        yield f"there is no report yet: the same command, or `lambdasweep report {run.root}`, writes it"
    yield from driver_lines(counts)


def _command_lines(run: RunDir, each: EachRecord) -> Iterator[str]:
    """Say at which λs a command has measured, and at which it has not."""
    done = dict(run.measured_tables())
    left = [lam for lam in each.lambdas if lam not in done]
    yield f"command  {' '.join(each.command)}"
    yield f"{len(each.lambdas) - len(left)}/{counted(len(each.lambdas), 'λ')} measured"
    if left:
        between = "; " if is_named(left[0]) else ", "
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        yield f"  left at λ {between.join(left[:_SHOWN])}{more}"
    failed = [(lam, path) for lam in left if isinstance(path := run.failure(lam), Path) and path.is_file()]
    for lam, path in failed[:_SHOWN]:
        why, *more_of_it = [""]
        with contextlib.suppress(OSError):  # the next try has just put it aside
            why, *more_of_it = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        yield f"  the last try at λ {lam} failed: {why}"
        yield from (f"    {line}" for line in more_of_it[-_LAST_LINES:])
    if len(failed) > _SHOWN:
        yield f"  and so did those at {counted(len(failed) - _SHOWN, 'more λ')}"
    yield from damaged(run)


def damaged(run: RunDir) -> Iterator[str]:
    """Name the damaged tables, which count as absent."""
    if lines := describe_damage(run):
        yield "damaged tables, not counted as done; the command that made them scores them again:"
        yield from (f"  {line}" for line in lines)


def driver_lines(view: DriverView) -> Iterator[str]:
    """Yield how the last driver does, and what each of its replicas does while it runs."""
    yield from filter(None, [driver(view)])
    if view.driver_runs and view.driver:
        yield from filter(None, [pace(view)])
        living = replicas(view.driver)
        yield from (f"  {name}: {doing(replica)}" for name, replica in living[:_REPLICAS_SHOWN])
        if len(living) > _REPLICAS_SHOWN:
            yield f"  and {len(living) - _REPLICAS_SHOWN} more replicas"


def spent(counts: RunCounts) -> str:
    """Say what the committed units took, by their receipts; without a receipt the text is empty."""
    sums = counts.spent
    if not sums.receipts:
        return ""
    tokens = sums.tokens_scheduled + sums.tokens_cached
    text = f"{cost(counts.cost, counts.unit_of_cost)}, {quantity(tokens)} tokens"
    if sums.tokens_cached:
        text += f", {sums.tokens_cached / tokens:.0%} of them cached"
    if sums.tokens_generated:
        text += f", {quantity(sums.tokens_generated)} sampled"
    if sums.receipts < counts.done:
        text += f" (by {sums.receipts} receipts of {counts.done} units)"
    return text


def driver(view: DriverView) -> str:
    """Say how the run's last driver does, or how it ended; if none is known the text is empty."""
    state = view.driver
    if state is None:
        return ""
    ago = duration(view.driver_age)
    lost = f"; {counted(state.failures, 'replica')} failed" if state.failures else ""
    lost += f", {counted(state.given_up, 'unit')} given up" if state.given_up else ""
    if view.driver_runs:
        return f"driver runs on {state.host} (process {state.pid}), seen {ago} ago{lost}"
    if view.driver_is_gone:
        return (
            f"driver ended without a word, seen {ago} ago (process {state.pid} on this machine is gone); the same command "
            f"goes on{lost}"
        )
    if state.state == "running":
        return f"driver not seen for {ago}: it ran on {state.host} (process {state.pid}){lost}"
    if state.state == "failed":
        return f"driver failed {ago} ago: {state.error.partition(chr(10))[0]}{lost}"
    ended = "was stopped" if state.state == "stopped" else "ended"
    return f"driver {ended} {ago} ago, with {counted(state.done, 'unit')} done and {state.left} left{lost}"


def pace(view: DriverView) -> str:
    """Say when a running driver will be done and how fast its replicas are; before a unit is done the text is empty."""
    state = view.driver if view.driver_runs else None
    if state is None or state.requests_per_second is None or state.seconds_left is None:
        return ""
    return (
        f"{duration(max(0.0, state.seconds_left - view.driver_age))} left, "
        f"{quantity(state.requests_per_second)} requests/s, {quantity(state.tokens_per_second or 0)} tokens/s"
    )


def replicas(state: DriverState) -> list[tuple[str, ReplicaReport]]:
    """Return the living replicas in the order of their numbers."""
    return sorted(state.replicas.items(), key=lambda item: [int(number) for number in re.findall(r"\d+", item[0])])


def doing(replica: ReplicaReport) -> str:
    """Say what a replica does."""
    since = duration(replica["seconds"])
    if replica["unit"] is None:
        return f"{replica['doing']} for {since}"
    task, lam, shard = replica["unit"]
    return f"{task} λ {lam} shard {shard} for {since}"
