"""`lambdasweep run` prepares and records a sweep, runs what is left, and adds λs where λ* may be."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contract.damage import look_at_footers
from contract.errors import EXIT_INTERRUPTED, EXIT_QUARANTINE
from contract.points import order
from contract.records import Begun, Plan, SweepRecord, read_begun
from contract.rundir import RunDir
from contract.units import Unit, rescored_name
from contract.whole_tables import read_or_problem
from lambdasweep import record
from lambdasweep.config import SweepConfig
from lambdasweep.derived import delete_derived
from lambdasweep.launch import Launch, check_disk, fingerprint_pair, say_put_aside
from lambdasweep.monitor.heartbeat import Heartbeat
from lambdasweep.monitor.history import History, command_line
from lambdasweep.monitor.phase import phase
from lambdasweep.monitor.progress import SweepProgress
from lambdasweep.monitor.wording import counted
from lambdasweep.preflight import preflight
from lambdasweep.prepare import Prepared, prepare_for
from lambdasweep.tasks.answers import AnswerSpec
from lambdasweep.tasks.grading import write_graded
from lambdasweep.tasks.lm_eval_tasks.own_metrics import write_outcomes

if TYPE_CHECKING:
    from ray_jobs.work import Source

# Parquet with zstd on real tables: about 11 bytes a continuation token and 12 a request, plus headers and the receipt.
_BYTES_PER_TOKEN, _BYTES_PER_REQUEST, _BYTES_PER_UNIT = 20, 24, 16 << 10
_BYTES_PER_NEW_TOKEN = 24  # its id, its text and its scores


@dataclass(frozen=True, slots=True)
class SweepResult:
    """How `run_sweep` ended."""

    run: RunDir
    exit_code: int
    units: int  # done by this call
    requests: int
    seconds: dict[str, float]  # of all replicas: switch, score, commit
    begun: Begun  # the records of the run directory


def run_sweep(config: SweepConfig, say: Callable[[str], None]) -> SweepResult:
    """Run a sweep, or go on with it; returns when every unit is committed or the user stops it.

    Args:
        config: what is asked for.
        say: told one line of news at a time.

    Raises:
        InputError: bad input; nothing is written.
        SweepError: units were given up, or nothing could be run.
    """
    record.check_target(config.out)
    run = RunDir(config.out)
    begun = read_begun(run)
    record.check_is_sweep(run, begun)
    with phase("reading the pair and its tasks"):
        prepared = prepare_for(begun, config)
    warnings = [*preflight(prepared), *prepared.warnings]
    check_disk(config.out, disk_bytes(prepared, len(config.lambdas) + config.refine))
    fingerprints = fingerprint_pair(prepared)
    sweep = record.sweep_record(prepared, fingerprints)
    record.check(run, begun, sweep, {name: record.task_record(task) for name, task in prepared.everything.items()})
    for warning in [*warnings, *replicas_idle(config, len(units_left(run, prepared)[0]))]:
        say(f"warning: {warning}")
    with run.lock():
        run.sweep_temporaries()
        look_at_footers(run)
        say_put_aside(run, say)
        begun = record.write(run, read_begun(run), sweep, prepared)  # another driver may have written meanwhile
        return _run_left(run, _Refinement(run, prepared, sweep, begun, say), sweep, say)


def units_left(run: RunDir, prepared: Prepared) -> tuple[list[Unit], int]:
    """Return the units of this command that are not committed, and how many there are with those that are."""
    from ray_jobs.units import TaskPlan, units_for

    everything = prepared.everything
    plan = {name: TaskPlan(task.shards, prepared.lambdas(name), task.costs) for name, task in everything.items()}
    there = run.all_committed() | (run.all_committed("generations") if prepared.prompts else {})
    left = units_for(plan, lambda task, lam: there.get((task, lam), ()))
    return left, sum(len(task.shards) * len(task.lambdas) for task in plan.values())


def units_to_rescore(run: RunDir, prepared: Prepared, is_ahead: bool = False) -> list[Unit]:
    """Return the units of this command that score again what was written, and are not committed.

    Outputs are read first: those of a damaged table are left out, and the run notes it, so that it is put aside.

    Args:
        run: the run.
        prepared: the sweep.
        is_ahead: whether those count, too, whose outputs are still to be written; nothing is read then.
    """
    rescore = prepared.config.rescore
    if not rescore:
        return []
    written, there = run.all_committed("generations"), run.all_committed("rescored")
    found = []
    for name, task in prepared.prompts.items():
        for lam in prepared.lambdas(name) if task.grader is not None else ():
            for shard, (rows, cost) in enumerate(zip(task.shards, task.output_costs, strict=True)):
                called = {under: rescored_name(name, under) for under in rescore}
                left = [under for under in rescore if shard not in there.get((called[under], lam), ())]
                is_written = shard in written.get((name, lam), ())
                if left and (is_ahead or (is_written and _is_readable(run, name, lam, shard))):
                    found += [Unit(called[under], lam, shard, *rows, cost, at=under) for under in left]
    return sorted(found, key=lambda unit: (unit.task, order(unit.at), order(unit.lam), unit.shard))


def _is_readable(run: RunDir, task: str, lam: str, shard: int) -> bool:
    """Read a table of outputs; tell whether that went well, and note it in the run where it did not."""
    path = run.unit("generations", task, lam, shard)
    table, problem = read_or_problem(path, (task, lam, shard))
    if table is None:
        run.damaged[path] = problem
    return table is not None


def replicas_idle(config: SweepConfig, units: int) -> list[str]:
    """Say that more replicas are asked for than there is work for."""
    if config.replicas is None or not 0 < units < config.replicas:
        return []
    left = f"{counted(units, 'unit')} {'is' if units == 1 else 'are'} left"
    return [f"--replicas {config.replicas}, and {left}: no more than {counted(units, 'replica')} at a time"]


class _Refinement:
    """Adds λs to a sweep where the tables so far say that λ* may be.

    What it adds depends on the tables and on how many λs there are besides the grid: those of the plan that the command does
    not name are taken for added ones. So it goes on where a killed sweep stopped, and does nothing where all is done.
    """

    def __init__(
        self, run: RunDir, prepared: Prepared, sweep: SweepRecord, begun: Begun, say: Callable[[str], None]
    ) -> None:
        self._run, self._sweep, self.begun, self._say = run, sweep, begun, say
        self._grid = set(prepared.config.lambdas)
        self._most = prepared.config.refine
        self._has_ended = False  # tables of choices do not change after it, and it says why it ends once
        self.prepared = self._grown(prepared, ()) if self._most else prepared

    @property
    def plan(self) -> Plan:
        return self.begun.asked.plan

    def units(self) -> list[Unit]:
        """Return the units of the next λs, which are in the plan then; none where enough is added, or nothing helps."""
        found = () if self._has_ended else self._next()
        self._has_ended = not found
        return units_left(self._run, self.prepared)[0] if found else []

    def _next(self) -> tuple[str, ...]:
        """Return the next λs, and add them to the plan."""
        from calibration.frontier.refine import ROUND, suggest
        from calibration.frontier.running_curve import answer_curve

        lambdas = self.prepared.scored_at
        count = min(ROUND, self._most - (len(lambdas) - len(self._grid)))
        if count <= 0:
            return ()
        curve = answer_curve(self._run, list(self.prepared.tasks), self._sweep, self.plan)
        if curve is None:
            self._say("nothing to refine: no λ of a task with choices is finished")
            return ()
        found = suggest(curve, count, lambdas, self.prepared.config.margin / 100)
        if not found.lambdas:
            self._say(f"λ* is as well known as these documents allow: no gap wider than {found.resolution:.2g} is left")
            return ()
        self._say(f"refining at λ = {', '.join(found.lambdas)}")
        self.prepared = self._grown(self.prepared, found.lambdas)
        return found.lambdas

    def _grown(self, prepared: Prepared, lambdas: tuple[str, ...]) -> Prepared:
        planned = (lam for name in prepared.tasks for lam in self.plan[name].lambdas)
        grown = dataclasses.replace(prepared, refined=tuple({*prepared.refined, *planned, *lambdas} - self._grid))
        self.begun = record.write(self._run, self.begun, self._sweep, grown)
        return grown


def _run_left(run: RunDir, refinement: _Refinement, sweep: SweepRecord, say: Callable[[str], None]) -> SweepResult:
    prepared = refinement.prepared
    history = History(run, command_line())

    def further() -> list[Unit]:
        """Return the units of λs that are added, and then those that score again what was written."""
        return refinement.units() or units_to_rescore(run, prepared)

    left, total = units_left(run, prepared)
    delete_derived(run, left, prepared, refinement.plan)
    if not left and (left := further()):
        total += len(left)
    interrupted = False
    tally = Heartbeat(run, left)
    progress = SweepProgress(total, tally)
    if left:
        from merge.file_states import check_unchanged
        from merge.remote_parent import travelling

        parents = travelling(prepared.pair, sweep.fingerprints)
        check_unchanged(prepared.pair.files)  # replicas take files of these stamps for those of the fingerprints
        launch = Launch(
            out=run,
            prepared=prepared,
            parents=parents,
            identity=sweep.table_identity(),
            sources=_sources(str(run.root.resolve()), prepared),
            total=total,
            called=lambda unit: f"{unit.task} λ = {unit.lam} shard {unit.shard}",
            more=further,
            listeners=(history,),
        )
        interrupted = launch.units(left, tally, progress, say)
    if not interrupted:
        for harness, instances in prepared.harnesses:
            write_outcomes(run, harness, instances, sweep.table_identity(), refinement.plan)
        for name, prompts in prepared.prompts.items():
            if prompts.grader is not None:
                write_graded(run, name, prompts.built, prompts.grader, sweep.table_identity(), refinement.plan)
    # What units are called, by the task whose λs they are at.
    tasks = {name: name for name in prepared.everything}
    tasks |= {rescored_name(name, under): name for name in prepared.prompts for under in prepared.config.rescore}
    quarantined = any(
        task in tasks and lam in refinement.prepared.lambdas(tasks[task])
        for task, lam in run.all_committed("quarantine")
    )
    exit_code = EXIT_INTERRUPTED if interrupted else EXIT_QUARANTINE if quarantined else 0
    return SweepResult(run, exit_code, tally.done, tally.requests, progress.seconds, refinement.begun)


def _sources(root: str, prepared: Prepared) -> "dict[str, Source]":
    from ray_jobs.rescoring import RescoreSource
    from ray_jobs.work import GenerateSource, TableSource
    from serve.settings import Sampling

    found: dict[str, Source] = {
        name: TableSource(root, name, task.built.table, task.built.requests_sha256)
        for name, task in prepared.tasks.items()
    }
    for name, prompts in prepared.prompts.items():
        asked, built = prompts.spec, prompts.built
        sampling = Sampling(asked.samples, float(asked.temperature), asked.max_tokens, built.stop_token_ids)
        if isinstance(asked, AnswerSpec):
            sampling = dataclasses.replace(
                sampling, top_p=asked.top_p, top_k=asked.top_k, until=asked.until, think_end_token=asked.think_end_token
            )
        found[name] = GenerateSource(
            root, name, built.table, built.requests_sha256, sampling, built.tokenizer, built.question
        )
        for under in prepared.config.rescore if prompts.grader is not None else ():
            source = RescoreSource(root, name, under, built.table, built.requests_sha256)
            found[rescored_name(name, under)] = source
    return found


def disk_bytes(prepared: Prepared, lambdas: int) -> int:
    """Return about how many bytes the tables of `lambdas` points take."""
    total = 0
    for task in prepared.tasks.values():
        table = task.built.table
        starts = table.column("continuation_start").to_numpy()
        lengths = sum(task.costs) - int(starts.sum())
        total += lengths * _BYTES_PER_TOKEN + table.num_rows * _BYTES_PER_REQUEST + len(task.shards) * _BYTES_PER_UNIT
    for prompts in prepared.prompts.values():
        each = _BYTES_PER_REQUEST + prompts.spec.max_tokens * _BYTES_PER_NEW_TOKEN
        rows = prompts.built.table.num_rows * prompts.spec.samples
        times = 1 + (len(prepared.config.rescore) if prompts.grader is not None else 0)
        total += times * (rows * each + len(prompts.shards) * _BYTES_PER_UNIT)
    return total * lambdas
