"""`lambdasweep score` checks the input, records it, and runs what is left."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from contract.commit import commit_json, commit_table
from contract.errors import EXIT_INTERRUPTED, EXIT_QUARANTINE, InputError, PairError, join
from contract.records import SweepRecord
from lambdasweep import record
from lambdasweep.batch.config import ScoreConfig
from lambdasweep.batch.files import Inputs, open_inputs
from lambdasweep.batch.find import lies_in
from lambdasweep.batch.identity import ScoreRecord, check, file_record, read_score
from lambdasweep.batch.repeats import repeated_rows
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.batch.source import ParquetSource
from lambdasweep.launch import Launch, check_disk, fingerprint_pair, say_put_aside
from lambdasweep.monitor.heartbeat import Heartbeat
from lambdasweep.monitor.progress import ScoreProgress
from lambdasweep.preflight import preflight
from lambdasweep.prepare import SHARD_TOKENS, Prepared, prepare

TASK = "scores"  # what a unit's task is called
_SHORTEST = 3  # a window has at least so many tokens

# Parquet with zstd: see `lambdasweep.sweep`.
_BYTES_PER_TOKEN, _BYTES_PER_ROW, _BYTES_PER_UNIT = 20, 32, 16 << 10


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """How `run_score` ended."""

    out: ScoreDir
    exit_code: int
    units: int  # done by this call
    rows: int
    tokens: int  # computed by the engines
    seconds: dict[str, float]  # of all replicas: switch, score, commit


def run_score(config: ScoreConfig, say: Callable[[str], None]) -> ScoreResult:
    """Score all rows of some Parquet files, or go on with it.

    Args:
        config: what is asked for.
        say: told one line of news at a time.

    Raises:
        InputError: bad input, nothing is written; or a file that is changed or found damaged on the way.
        SweepError: units were given up, or nothing could be run.
    """
    sweep = config.sweep
    record.check_target(sweep.out, "score.json", "")
    out = ScoreDir(sweep.out)
    prepared, inputs = _prepare(config, out)
    for warning in preflight(prepared):
        say(f"warning: {warning}")
    asked = score_record(config, prepared, inputs)
    if out.exists():
        check(out, read_score(out), asked)
    rows, units = inputs.rows, len(inputs.shards)
    check_disk(sweep.out, inputs.scored * _BYTES_PER_TOKEN + rows * _BYTES_PER_ROW + units * _BYTES_PER_UNIT)
    if sweep.max_model_len is None:
        # Of a batch that is begun, it may not change.
        fewer = "" if out.exists() else ". --max-model-len asks for fewer, which leaves more memory for weights"
        say(
            f"engines take up to {prepared.settings.max_model_len} tokens: how long rows are is not known before they are "
            f"read{fewer}"
        )
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    with out.lock():
        out.sweep_temporaries()
        say_put_aside(out, say)
        if out.exists():  # another driver may have been here since
            check(out, read_score(out), asked)
        else:
            commit_json(out.score_json, asked.to_json())
        if not out.repeated_ids.is_file():
            say(f"reading the ids of {inputs.rows} rows")
            found = repeated_rows(inputs.files, inputs.columns)
            commit_table(out.repeated_ids, pa.table({"row": pa.array(found)}))
        return _run_left(config, out, prepared, inputs, asked.made, say)


def _prepare(config: ScoreConfig, out: ScoreDir) -> tuple[Prepared, Inputs]:
    """Open the model and the files.

    Raises:
        InputError: with everything that is wrong with either.
    """
    from merge.checkpoint import open_checkpoint
    from serve.settings import installed_device

    failures: list[InputError] = []
    prepared = inputs = None
    try:
        if config.is_model:
            # What is wrong is said of one checkpoint, not of two.
            path = open_checkpoint(config.sweep.base, "model").path
            if not (path / "tokenizer.json").exists():
                raise PairError(f"{path} has no tokenizer.json: put it there")
        prepared = prepare(config.sweep, read_score(out).made.engine if out.exists() else None)
    except InputError as error:
        failures.append(error)
    try:
        inputs = open_inputs(config.requests, config.id, SHARD_TOKENS[installed_device()])
    except InputError as error:
        failures.append(error)
    failures += [
        InputError(f"--out {config.sweep.out} lies in {request}, and would be read as requests: give another")
        for request in config.requests
        if lies_in(config.sweep.out, request)
    ]
    if prepared and inputs and inputs.columns.continuation is None and prepared.settings.max_model_len < _SHORTEST:
        failures.append(
            InputError(f"--max-model-len is too small: whole prompts are scored in windows of {_SHORTEST} or more")
        )
    if failures or prepared is None or inputs is None:
        raise join(failures, "the batch cannot be set up")
    return prepared, inputs


def score_record(config: ScoreConfig, prepared: Prepared, inputs: Inputs) -> ScoreRecord:
    """Return what score.json holds."""
    if config.is_model:
        from merge.fingerprints import remembered_fingerprint

        digest = remembered_fingerprint(prepared.pair.opened["base"], "model")
        made = record.sweep_record(prepared, {"base": digest, "aligned": digest})
        made = replace(made, pair={"model": made.pair["base"]}, line=None, tokenizer=None)
    else:
        made = record.sweep_record(prepared, fingerprint_pair(prepared))
    return ScoreRecord(
        made,
        None if config.is_model else config.sweep.lambdas[0],
        inputs.columns.to_json(),
        inputs.rows,
        len(inputs.shards),
        tuple(map(file_record, inputs.files)),
    )


def _run_left(
    config: ScoreConfig,
    out: ScoreDir,
    prepared: Prepared,
    inputs: Inputs,
    made: SweepRecord,
    say: Callable[[str], None],
) -> ScoreResult:
    from ray_jobs.units import TaskPlan, units_for

    lam = config.sweep.lambdas[0]
    plan = {TASK: TaskPlan(inputs.shards, [lam], inputs.costs)}
    left = units_for(plan, lambda *_: out.parts("scores"))
    total = len(inputs.shards)
    interrupted = False
    tally = Heartbeat(out, left)
    progress = ScoreProgress(total, tally)
    if left:
        from merge.file_states import check_unchanged
        from merge.remote_parent import describe_parent, travelling

        if config.is_model:
            base, aligned = describe_parent(prepared.pair.opened["base"], "model", made.fingerprints["model"]), None
        else:
            base, aligned = travelling(prepared.pair, made.fingerprints)
        check_unchanged(prepared.pair.files)  # replicas take files of these stamps for those of the fingerprints
        tokenizer = base
        if aligned and config.sweep.tokenizer != "base":
            tokenizer = aligned.get(config.sweep.tokenizer) or next(iter(aligned.values()))
        root, max_model_len = str(out.root.resolve()), prepared.settings.max_model_len
        launch = Launch(
            out=out,
            prepared=prepared,
            parents=(base, aligned),
            identity=made.table_identity(),
            sources={TASK: ParquetSource(root, os.getcwd(), inputs.files, inputs.columns, tokenizer, max_model_len)},
            total=total,
            called=lambda unit: f"rows {unit.first_row}–{unit.end_row - 1}",
        )
        interrupted = launch.units(left, tally, progress, say)
    code = EXIT_INTERRUPTED if interrupted else EXIT_QUARANTINE if out.parts("quarantine") else 0
    return ScoreResult(out, code, tally.done, tally.requests, tally.tokens, progress.seconds)
