"""Several runs are put side by side on the choice tasks that all of them have."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from calibration.analyse import Analysis, analyse
from calibration.frontier.frontier import Frontier
from calibration.frontier.lambda_star import MARGIN
from calibration.uncertainty.resample import RESAMPLES
from contract.errors import InputError
from contract.location import locate
from contract.points import ONLY
from contract.records import Asked, Plan, SweepRecord, TaskRecord, read_asked, read_sweep
from contract.rundir import RunDir

# What makes a task another one, as far as a plan tells; tokenizers, and with them requests, differ between pairs.
_SAME = ("sha256", "format", "shots", "limit", "seed", "template", "system_prompt", "documents", "scored_as")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run."""

    name: str  # the name of its directory, or as much of its path as tells it from the others
    base: str
    aligned: str
    method: str  # of the line between them
    frontiers: dict[str, Frontier]  # by task, or by the name of a pool
    members: dict[str, tuple[str, ...]]  # the tasks that each frontier is of, by its name


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs on the tasks that all of them have."""

    runs: tuple[ComparedRun, ...]  # in the order given
    tasks: tuple[str, ...]  # in the order of the first run's plan
    titles: tuple[str, ...]  # of the frontiers that all runs have: those of pools first
    margin: float  # the accuracy that λ* may give up, as a share of documents
    notices: tuple[str, ...]  # what must be known before the runs are compared


def gather_runs(places: Sequence[str], margin: float | None = None, resamples: int = RESAMPLES) -> Comparison:
    """Analyse several runs on the choice tasks that all of them have.

    Args:
        places: of the runs: paths or URLs.
        margin: the accuracy that λ* may give up in all runs, as a share of documents; without it, what all runs were asked
            for, or 1 point where that differs.
        resamples: as `analyse.analyse` takes them.

    Raises:
        InputError: fewer than two runs are given, or one twice; one is none, or has several aligned checkpoints; or there is
            no choice task that all of them have, or have finished λs of. All problems are told at once.
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    problems = [] if len(places) > 1 else ["one run alone is shown by lambdasweep report: give two or more"]
    whole = {place: _whole(place) for place in places}
    problems += [f"{place} is given twice" for place in whole if [*map(whole.get, places)].count(whole[place]) > 1]
    read: dict[str, tuple[RunDir, SweepRecord, Asked]] = {}
    for place in dict.fromkeys(places):
        run = RunDir(locate(place))
        try:
            asked, sweep = read_asked(run), read_sweep(run)
        except InputError as error:
            problems += [f"{error.title}: {one}" for one in error.problems] or [error.title]
            continue
        if sweep.names != (ONLY,):
            problems.append(f"{place} has several aligned checkpoints, so that its points are on no one line")
        read[place] = run, sweep, asked
    plans = {place: asked.plan for place, (_, _, asked) in read.items()}
    tasks, notices = _common(plans)
    if not problems and not tasks:
        each = [f"{place} has {', '.join(plan) or 'no task'}" for place, plan in plans.items()]
        problems += ["the runs have no task with choices in common", *each, *notices]
    if problems:
        raise InputError("the runs cannot be compared", problems)
    asked_for = {MARGIN if asked.margin is None else asked.margin for _, _, asked in read.values()}
    if margin is None:
        margin = next(iter(asked_for)) if len(asked_for) == 1 else MARGIN
        if len(asked_for) > 1:
            notices.append("The runs were asked for different margins of λ*; here it is 1 point in all of them.")
    names = _names(list(read))
    runs = []
    for place, (run, sweep, asked) in read.items():
        analysis = analyse(run, resamples=resamples, margin=margin, tasks=tasks, asked=asked, sweep=sweep)
        notices += [f"{names[place]}: damaged tables count as absent: {line}" for line in analysis.damaged]
        runs.append(_compared(names[place], sweep, analysis))
    # A pool in which a run has fewer tasks finished is another pool.
    of_first = runs[0].members
    titles = [title for title in of_first if all(one.members.get(title) == of_first[title] for one in runs)]
    if not titles:
        each = [f"{one.name} has finished λs of {', '.join(one.frontiers) or 'no task'}" for one in runs]
        raise InputError("the runs cannot be compared: no task with choices has finished λs in all of them", each)
    unfinished = [task for task in tasks if task not in titles]
    pools = dict.fromkeys(title for one in runs for title in one.members if title not in tasks)
    notices += [
        f"{title} pools other tasks in some runs, hence not compared." for title in pools if title not in titles
    ]
    if unfinished:
        notices.append(f"Not finished in all runs, hence not compared: {', '.join(unfinished)}.")
    return Comparison(tuple(runs), tuple(tasks), tuple(titles), margin, tuple(notices))


def _common(plans: dict[str, Plan]) -> tuple[list[str], list[str]]:
    """Return the tasks that all runs have and that are the same in all, and sentences about the others."""
    scored = {
        place: {task: one for task, one in plan.items() if one.scored_as in ("choices", "contexts")}
        for place, plan in plans.items()
    }
    every = list(dict.fromkeys(task for plan in scored.values() for task in plan))
    shared = [task for task in every if all(task in plan for plan in scored.values())]
    notices = []
    if missing := [task for task in every if task not in shared]:
        notices.append(f"Not in all runs, hence not compared: {', '.join(missing)}.")
    tasks = []
    for task in shared:
        records = [plan[task] for plan in scored.values()]
        differs = [name for name in _SAME if len({_value(one, name) for one in records}) > 1]
        if differs:
            notices.append(f"{task} is not the same in all runs, hence not compared: {', '.join(differs)} differ.")
            continue
        tasks.append(task)
        if len({one.chat_template_sha256 is None for one in records}) > 1:
            notices.append(f"{task} is in a chat template in some runs only.")
    return tasks, notices


def _value(record: TaskRecord, name: str) -> str:
    value = str(getattr(record, name))
    # An unconditional pass (--pmi) adds a confidence, and leaves all others as they are.
    return value.partition("; without the document")[0] if name == "template" else value


def _compared(name: str, sweep: SweepRecord, analysis: Analysis) -> ComparedRun:
    found = analysis.found
    frontiers = {one.task: one for one in (*found.pools, *found.tasks)}
    members = {title: tuple(sorted(analysis.pools.get(title, (title,)))) for title in frontiers}
    base, aligned = (sweep.pair[role].name for role in ("base", "aligned"))
    return ComparedRun(name, base, aligned, sweep.line.method if sweep.line else "linear", frontiers, members)


def _whole(place: str) -> str:
    """Return a path from the root on, so that `.` has a name and `run/` is `run`; a URL stays what it is."""
    return place.rstrip("/") if "://" in place else os.path.abspath(place)


def _names(places: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of paths that tell the runs apart, all of the same number of parts."""
    parts = {place: PurePath(_whole(place)).parts for place in places}
    for count in range(1, max(map(len, parts.values()), default=1) + 1):
        names = {place: "/".join(of[-count:]) for place, of in parts.items()}
        if len(set(names.values())) == len(places):
            return names
    return {place: place for place in places}
