"""This module estimates how long a sweep takes, from how many tokens are computed and how fast."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contract.records import Begun
from contract.rundir import RunDir
from contract.units import Receipt, Unit, rescored_name
from lambdasweep.engine_defaults import default_replicas
from lambdasweep.monitor.shares import Shares
from lambdasweep.monitor.wording import counted

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared, PreparedPrompts, PreparedTask
    from merge.checkpoint import TensorInfo
    from serve.engine import Prompt
    from serve.settings import EngineSettings

# So fast a replica is assumed to be: on a CPU like float32 GEMMs of a small model in vLLM, on a GPU like bf16 on an H100.
FLOPS_PER_CORE = 60e9
FLOPS_PER_GPU = 0.4 * 990e12
_GPU_BLOCK = 16  # tokens in a block of the KV cache, where vLLM chooses the size
_SHARDS = 4  # so many shards of a task are looked at
_READ_SECONDS = 2.0  # receipts are read for so long
# What a unit does with tokens, by the table that completes it.
_DONE = {"tokens": "scored", "generations": "sampled", "rescored": "scored again"}


@dataclass(frozen=True, slots=True)
class Ahead:
    """This says how much of a sweep is left, by estimate."""

    tokens: int  # the tokens that are still to be computed
    seconds: float  # the time they take, without engine starts
    basis: str  # what the estimate of the seconds rests on


def ahead(prepared: "Prepared", left: Sequence[Unit], run: RunDir, begun: Begun) -> Ahead:
    """Return what is left to do.

    Args:
        prepared: the sweep.
        left: its units that are not committed.
        run: its directory.
        begun: the records there; where it was begun, what was observed counts.
    """
    cores = len(os.sched_getaffinity(0))
    settings, replicas = prepared.settings, prepared.config.replicas
    if replicas is None:
        replicas = default_replicas(cores, settings.ranks) if settings.device == "cpu" else 1
    costs, shares = _costs(prepared), Shares()
    seen = _observed(run, begun, costs, shares) if begun.sweep is not None and begun.asked.plan else {}
    tokens = _tokens_left(prepared, left, shares)
    seconds, bases = 0.0, dict[str, str]()
    for kind in tokens.keys() & seen.keys():
        rate, units = seen[kind]
        seconds += tokens[kind] / (rate * replicas)
        so_far = f"at {rate:.0f} tokens/s a replica, as in the {counted(units, 'unit')} so far"
        bases[kind] = f"{so_far}, {counted(replicas, 'replica')}"
    guessed = tokens.keys() - bases.keys()
    if guessed or not bases:
        flops, what = _assumed_speed(settings, cores, replicas)
        seconds += 2 * active_parameters(prepared) * sum(tokens[kind] for kind in guessed) / flops
        bases |= dict.fromkeys(guessed or _DONE, f"2 FLOP × parameters × tokens computed, {what}")
    texts = [(kind, bases[kind]) for kind in _DONE if kind in bases]
    if len({text for _, text in texts}) > 1:
        basis = "; ".join(f"{_DONE[kind]} {text}" for kind, text in texts)
    else:
        basis = texts[0][1]
    return Ahead(round(sum(tokens.values())), seconds, basis)


def _costs(prepared: "Prepared") -> dict[str, tuple[int, ...]]:
    """Return the most tokens of each shard, by what the units of a task are called."""
    found = {name: task.costs for name, task in prepared.tasks.items()}
    for name, task in prepared.prompts.items():
        found[name] = task.costs
        found |= {rescored_name(name, under): task.output_costs for under in prepared.config.rescore}
    return found


def _tokens_left(prepared: "Prepared", left: Sequence[Unit], shares: Shares) -> dict[str, float]:
    """Return how many tokens some units still compute, by the table that completes a unit; none of them is 0.

    What units of a task computed so far says more than an estimate, because nobody knows how long outputs are.
    """
    from merge.model_sizes import sizes_of

    caches = not sizes_of(prepared.pair).is_hybrid  # `serve.prefixes` decides it by the same property
    block = (prepared.settings.block_size or _GPU_BLOCK) if caches else None
    likely = {name: computed_share(task, block) for name, task in prepared.tasks.items()}
    written: dict[str, str] = {}  # the tasks whose outputs are scored again, by what the units are called that do it
    for name, task in prepared.prompts.items():
        likely[name], again = written_share(task, block), written_share(task, block, is_again=True)
        called = [rescored_name(name, under) for under in prepared.config.rescore]
        likely |= dict.fromkeys(called, again)
        written |= dict.fromkeys(called, name)
    tokens = dict.fromkeys(_DONE, 0.0)
    for unit in left:
        name = unit.task
        kind = "rescored" if unit.at else "generations" if name in prepared.prompts else "tokens"
        share = likely[name]
        if unit.at:  # outputs are as long as they were written
            share *= shares.of(written[name], unit.lam, likely[written[name]]) / (likely[written[name]] or 1.0)
        tokens[kind] += unit.cost * shares.of(name, unit.lam, share)
    return {kind: count for kind, count in tokens.items() if count}


def _assumed_speed(settings: "EngineSettings", cores: int, replicas: int) -> tuple[float, str]:
    """Return the FLOP/s of all replicas together, where nothing was observed, and what is assumed there in words."""
    if settings.device == "cpu":
        return FLOPS_PER_CORE * cores, f"{counted(cores, 'core')} at {FLOPS_PER_CORE / 1e9:.0f} GFLOP/s"
    gpus = replicas * settings.ranks
    each = f"{FLOPS_PER_GPU / 1e12:.0f} TFLOP/s, 40 % of an H100's in bfloat16"
    return FLOPS_PER_GPU * gpus, f"{counted(gpus, 'GPU')} at {each}"


def _observed(
    run: RunDir, begun: Begun, costs: Mapping[str, Sequence[int]], shares: Shares
) -> dict[str, tuple[float, int]]:
    """Return the tokens that a replica computed in a second so far, switches included, and in how many units.

    The numbers stand by the table that completes a unit, because a sampled token takes longer than one that is scored.

    Args:
        run: its receipts count.
        begun: its records.
        costs: the most tokens of each shard, by what units are called.
        shares: is told what the units took.
    """
    from lambdasweep.monitor.run_counts import RunCounts

    def told(receipt: Receipt) -> None:
        if receipt.task in costs:
            shares.add(receipt.task, receipt.lam, costs[receipt.task][receipt.shard], receipt.tokens_scheduled)

    counts = RunCounts(run, _READ_SECONDS, told, begun)
    return {
        kind: (spent.tokens_scheduled / spent.seconds, spent.receipts)
        for kind, spent in counts.spent_on.items()
        if spent.tokens_scheduled and spent.seconds
    }


def active_parameters(prepared: "Prepared") -> int:
    """Return how many parameters a token goes through; among experts, only those that it is sent to count."""
    from merge.model_sizes import sizes_of
    from merge.text_part import only_text

    tensors: Mapping[str, TensorInfo] = only_text(prepared.pair).shaped.tensors
    share = sizes_of(prepared.pair).expert_share
    return round(sum(math.prod(info.shape) * (share if ".experts." in name else 1) for name, info in tensors.items()))


def computed_share(task: "PreparedTask", block: int | None) -> float:
    """Return which share of the tokens of a task's requests is computed, judging by some of its shards.

    Where prompts of a unit begin alike, that beginning is computed once, in whole blocks of `block` tokens; None says that
    the engine caches no prefixes. Requests of a document that differ in their last token only are one prompt
    (`serve.scoring`).
    """
    from serve.scoring import prompts_of, read_requests

    if block is None:
        return 1.0
    computed = sent = 0
    for index in _some(len(task.shards)):
        first, end = task.shards[index]
        requests = list(read_requests(task.built.table.slice(first, end - first)))
        prompts, _ = prompts_of([one for one in requests if 1 <= one.start < len(one.token_ids)])
        computed += computed_tokens(prompts, block)
        sent += task.costs[index]
    return computed / sent if sent else 1.0


def written_share(task: "PreparedPrompts", block: int | None, is_again: bool = False) -> float:
    """Return which share of the most tokens of a task's outputs is computed where they are as long as they may be.

    Each sample is a request, which finds its prompt in the prefix cache, in whole blocks. So does the question whether an
    answer is right, which finds the answer there, too.

    Args:
        task: the prompts.
        block: tokens in a block; None says that the engine caches no prefixes.
        is_again: whether the outputs are scored again, so that nothing is asked.
    """
    from serve.engine import Prompt

    samples, longest = task.spec.samples, task.spec.max_tokens
    asked = task.built.question.length if task.built.question and not is_again else 0
    costs = task.output_costs if is_again else task.costs
    computed = most = 0
    for index in _some(len(task.shards)):
        first, end = task.shards[index]
        prompts = [ids for ids in task.built.table["token_ids"].slice(first, end - first).to_pylist() if ids]
        written = [len(ids) + longest for ids in prompts for _ in range(samples)]
        if block is None:
            computed += sum(written)
        else:
            each = [Prompt(ids, len(ids) - 1, []) for ids in prompts for _ in range(samples)]
            computed += computed_tokens(each, block) + longest * len(written)
        if asked:
            computed += sum(asked + (length if block is None else length % block) for length in written)
        most += costs[index]
    return computed / most if most else 1.0


def _some(shards: int) -> list[int]:
    """Return the numbers of some of a task's shards, spread over all of them."""
    return sorted({turn * shards // _SHARDS for turn in range(_SHARDS)} if shards else ())


def computed_tokens(prompts: "Sequence[Prompt]", block: int) -> int:
    """Return how many tokens of some prompts are computed, one prompt after the other, from an empty prefix cache.

    A prompt reads the cache in whole blocks, at most up to its first row that matters.
    """
    # The number of each block, by the number of the one before it and its tokens.
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    computed = 0
    for prompt in prompts:
        ids, at, read, is_known = prompt.token_ids, 0, 0, True
        for begin in range(0, len(ids) - block + 1, block):
            key = (at, tuple(ids[begin : begin + block]))
            is_known = is_known and key in known
            at = known.setdefault(key, len(known) + 1)
            if is_known and begin + block <= prompt.first_row:
                read = begin + block
        computed += len(ids) - read
    return computed
