"""`lambdasweep plan` says what a sweep would cost and whether its inputs fit. It starts nothing."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from contract.errors import InputError, join
from contract.points import is_named
from lambdasweep.config import SweepConfig
from lambdasweep.expected_time import ahead
from lambdasweep.memory import describe_cache, describe_memory
from lambdasweep.monitor.wording import as_scored, counted, duration, how, size

if TYPE_CHECKING:
    from contract.records import SweepRecord
    from contract.rundir import RunDir
    from merge.pair import Pair


def describe(config: SweepConfig) -> Iterator[str]:
    """Yield the lines of the plan. With the base install only the files' headers are checked, and the lines say so.

    Raises:
        InputError: whatever `run` would refuse before it starts an engine, except NaN in the weights.
    """
    if find_spec("transformers") is None or find_spec("vllm") is None:
        yield from _describe_headers(config)
        return
    from contract.records import ParentRecord, read_begun
    from contract.rundir import RunDir
    from lambdasweep import record
    from lambdasweep.launch import check_disk
    from lambdasweep.preflight import preflight
    from lambdasweep.prepare import prepare_for
    from lambdasweep.sweep import disk_bytes, replicas_idle, units_left, units_to_rescore
    from merge.text_part import only_text

    record.check_target(config.out)
    run = RunDir(config.out)
    begun = read_begun(run)
    recorded = begun.sweep
    prepared = prepare_for(begun, config)
    warnings = [*preflight(prepared), *prepared.warnings]
    if recorded:
        weights = {role: recorded.pair.get(role, ParentRecord()).fingerprint for role in prepared.pair.parents}
        tasks = {name: record.task_record(task) for name, task in prepared.everything.items()}
        planned = record.sweep_record(prepared, weights)
        record.check(run, begun, planned, tasks)
        warnings += _other_sources(run, recorded, planned)
    pair, settings = only_text(prepared.pair), prepared.settings
    left, total = units_left(run, prepared)
    needed = disk_bytes(prepared, len(config.lambdas) + config.refine)
    check_disk(config.out, needed)
    again = units_to_rescore(run, prepared, is_ahead=True)
    tokens = sum(unit.cost for unit in [*left, *again])
    yield _describe_pair(prepared.pair, settings.ranks)
    yield f"line      {pair.line}"
    yield f"lambdas   {shortened(config.lambdas)}"
    yield describe_memory(prepared)
    chosen = " (auto)" if settings.device == "cuda" and config.tp is None and recorded is None else ""
    ranks = f"TP {settings.tensor_parallel}{chosen}, PP {settings.pipeline_parallel}"
    yield (
        f"engine    {settings.device}, {settings.dtype}, {ranks}, "
        f"requests up to {settings.max_model_len} tokens ({prepared.length}), "
        f"{describe_cache(prepared)}" + (f", {counted(settings.threads, 'thread')} a rank" if settings.threads else "")
    )
    for name, task in prepared.tasks.items():
        yield (
            f"task      {name}: {counted(task.built.documents, 'document')}, "
            f"{counted(task.built.table.num_rows, 'request')}, {sum(task.costs)} tokens in "
            f"{counted(len(task.shards), 'shard')} ({as_scored(task.spec.format, task.built.scored_as, task.spec.shots)})"
        )
    for name, prompts in prepared.prompts.items():
        yield (
            f"{'task    ' if prompts.grader else 'generate'}  {name}: "
            f"{counted(prompts.built.table.num_rows, 'document' if prompts.grader else 'prompt')}, "
            f"{sum(prompts.costs)} tokens at most in "
            f"{counted(len(prompts.shards), 'shard')} ({how(record.task_record(prompts))})"
        )
    rescored = f", then {len(again)} that score again what was written" if again else ""
    further = f", then those of up to {config.refine} λ more" if config.refine else ""
    yield f"units     {len(left)} to do of {total} ({len(config.lambdas)} λ){further}{rescored}"
    work = ahead(prepared, [*left, *again], run, begun)
    # Prompts are read from the cache in whole blocks, or not at all in models whose prefixes are not cached.
    tokens = max(tokens, work.tokens)
    yield f"tokens    {tokens} at most, of which about {work.tokens} are computed (what prompts begin with alike, once)"
    yield f"disk      {size(needed)} of tables"
    yield f"time      about {duration(work.seconds)}, engine start apart ({work.basis})"
    for warning in [*warnings, *replicas_idle(config, len(left))]:
        yield f"warning: {warning}"
    same = f", and whether they are those of {config.out}" if recorded else ""
    yield f"not checked: NaN and infinity in the weights{same} (`run` reads them)"


def _other_sources(run: "RunDir", recorded: "SweepRecord", planned: "SweepRecord") -> Iterator[str]:
    """Yield a warning for each parent that comes from elsewhere than when the run was begun."""
    for role, parent in planned.pair.items():
        before = recorded.pair[role].source
        if parent.source != before:
            yield (
                f"{run.root} was begun with {role} from {before}, and here it is {parent.source}: `run` refuses it unless "
                "its content is the same"
            )


def shortened(lambdas: Sequence[str], shown: int = 24) -> str:
    """Return λs in one line: the first ones and the last where there are many."""
    between = "; " if is_named(lambdas[0]) else ", "
    if len(lambdas) <= shown:
        return between.join(lambdas)
    return f"{between.join(lambdas[: shown - 1])}{between}…{between}{lambdas[-1]}"


def _describe_headers(config: SweepConfig) -> Iterator[str]:
    from lambdasweep.tasks.chat import read_template
    from lambdasweep.tasks.documents import read_documents
    from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, LmEvalSpec
    from lambdasweep.tasks.prompts import read_prompts
    from merge.line import Line
    from merge.pair import open_pair
    from merge.text_part import only_text

    failures: list[InputError] = []
    pair = None
    try:
        line = Line(config.method, config.lam_map, config.vocab)
        pair = open_pair(config.base, config.aligned, config.base_revision, config.aligned_revision, line)
        only_text(pair)
    except InputError as error:
        failures.append(error)
    if pair is not None and any(spec.chat for spec in (*config.tasks, *config.generate)):
        try:
            read_template((pair.aligned if config.tokenizer == "base" else pair.parent(config.tokenizer)).path)
        except InputError as error:
            failures.append(error)
    counts = {}
    for spec in config.tasks:
        if isinstance(spec, LmEvalSpec):
            continue
        try:
            counts[spec.name] = len(read_documents(spec).documents)
        except InputError as error:
            failures.append(error)
    for sampled in config.generate:
        try:
            counts[sampled.name] = len(read_prompts(sampled).documents)
        except InputError as error:
            failures.append(error)
    if failures or pair is None:
        raise join(failures)
    yield _describe_pair(pair, (config.tp or 1) * config.pp)
    yield f"line      {pair.line}"
    yield f"lambdas   {shortened(config.lambdas)}"
    for name, count in counts.items():
        yield f"task      {name}: {count} rows"
    for spec in config.tasks:
        if isinstance(spec, LmEvalSpec):
            yield f"task      {PREFIX}{spec.source}: not checked"
    for warning in [*config.warnings, *pair.warnings]:
        yield f"warning: {warning}"
    yield "not checked: NaN and infinity in the weights, tokens, units, time (install lambdasweep[cpu] or [gpu] for those)"


def _describe_pair(pair: "Pair", ranks: int) -> str:
    from merge.text_part import only_text

    text = only_text(pair)
    held, whole = text.shaped, len(pair.shaped.tensors)
    count, adapters = len(pair.parents), sum(one.is_adapter for one in pair.opened.values())
    if adapters:
        others = count - 1 - adapters
        parents = "base and " + (f"{counted(others, 'checkpoint')} and " if others else "")
        parents += f"the factors of {counted(adapters, 'adapter')}"
    else:
        parents = "both parents" if count == 2 else f"all {count} parents"
    of_text = f" of the language model, which is what is scored ({whole} in all)" if len(held.tensors) < whole else ""
    return (
        f"pair      {len(held.tensors)} tensors{of_text}, {size(held.nbytes)} each; {parents} per rank: "
        f"{size(sum(text.held_bytes(ranks)))}"
    )
