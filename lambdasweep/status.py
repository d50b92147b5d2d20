"""`lambdasweep status`: what of a run is done. Reads file names and small tables only; knows no Ray."""

import os
from collections import Counter
from collections.abc import Iterator

from lambdasweep.rundir import RunDir

_SHOWN = 5


def describe(root: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of the status.

    Raises:
        InputError: `root` is no run directory.
    """
    run = RunDir(root)
    sweep, plan = run.sweep(), run.plan()
    engine = sweep["engine"]
    yield f"base     {sweep['pair']['base']['source']}"
    yield f"aligned  {sweep['pair']['aligned']['source']}"
    yield (
        f"engine   vLLM {sweep['versions'].get('vllm', '?')} on {engine['device']}, {engine['dtype']}, "
        f"TP {engine['tensor_parallel']}"
    )
    done = left = 0
    scored, quarantined = run.all_committed(), run.all_committed("quarantine")
    for name, task in plan["tasks"].items():
        reasons: Counter[str] = Counter()
        task_done = 0
        unfinished: list[str] = []
        for lam in task["lambdas"]:
            committed = len(scored.get((name, lam), ()))
            task_done += committed
            if committed < len(task["shards"]):
                unfinished.append(lam)
            if (name, lam) in quarantined:
                reasons.update(run.quarantine(name, lam).column("reason").to_pylist())
        total = len(task["shards"]) * len(task["lambdas"])
        done, left = done + task_done, left + total - task_done
        yield (
            f"{name}: {task_done}/{total} units, {task['documents']} documents × {len(task['lambdas'])} λ "
            f"({task['format']}, {task['shots']} shots)"
        )
        if unfinished:
            more = f" and {len(unfinished) - _SHOWN} more" if len(unfinished) > _SHOWN else ""
            yield f"  left at λ {', '.join(unfinished[:_SHOWN])}{more}"
        for reason, count in reasons.most_common(_SHOWN):
            yield f"  quarantined: {count} × {reason}"
    yield f"{done} units done, {left} left"
