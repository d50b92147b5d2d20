"""This module estimates how long a sweep takes, from how many tokens are computed and how fast."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contract.rundir import RunDir
from contract.units import Unit
from lambdasweep.engine_defaults import default_replicas
from lambdasweep.monitor.wording import counted

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared, PreparedTask
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


def ahead(prepared: "Prepared", left: Sequence[Unit], run: RunDir | None) -> Ahead:
    """Return what is left to do.

    Args:
        prepared: the sweep.
        left: its units that are not committed.
        run: its directory, where it was begun: what was observed there then counts.
    """
    cores = len(os.sched_getaffinity(0))
    settings, replicas = prepared.settings, prepared.config.replicas
    if replicas is None:
        replicas = default_replicas(cores, settings.ranks) if settings.device == "cpu" else 1
    tokens = _tokens_left(prepared, left)
    seen = _observed(run) if run is not None else {}
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


def _tokens_left(prepared: "Prepared", left: Sequence[Unit]) -> dict[str, float]:
    """Return how many tokens some units still compute, by the table that completes a unit; none of them is 0."""
    from merge.model_sizes import sizes_of

    caches = not sizes_of(prepared.pair).is_hybrid  # `serve.prefixes` decides it by the same property
    block = prepared.settings.block_size
    shares = {name: computed_share(task, block) if caches else 1.0 for name, task in prepared.tasks.items()}
    tokens = dict.fromkeys(_DONE, 0.0)
    for unit in left:
        kind = "rescored" if unit.at else "generations" if unit.task in prepared.prompts else "tokens"
        tokens[kind] += unit.cost * shares.get(unit.task, 1.0)
    return {kind: count for kind, count in tokens.items() if count}


def _assumed_speed(settings: "EngineSettings", cores: int, replicas: int) -> tuple[float, str]:
    """Return the FLOP/s of all replicas together, where nothing was observed, and what is assumed there in words."""
    if settings.device == "cpu":
        return FLOPS_PER_CORE * cores, f"{counted(cores, 'core')} at {FLOPS_PER_CORE / 1e9:.0f} GFLOP/s"
    gpus = replicas * settings.ranks
    each = f"{FLOPS_PER_GPU / 1e12:.0f} TFLOP/s, 40 % of an H100's in bfloat16"
    return FLOPS_PER_GPU * gpus, f"{counted(gpus, 'GPU')} at {each}"


def _observed(run: RunDir) -> dict[str, tuple[float, int]]:
    """Return the tokens that a replica computed in a second so far, switches included, and in how many units.

    The numbers stand by the table that completes a unit, because a sampled token takes longer than one that is scored.
    """
    from lambdasweep.monitor.run_counts import RunCounts

    counts = RunCounts(run, _READ_SECONDS)
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

    Where prompts of a unit begin alike, that beginning is computed once, in whole blocks of `block` tokens. Requests of a
    document that differ in their last token only are one prompt (`serve.scoring`).
    """
    from serve.scoring import plan, read_requests

    count = len(task.shards)
    computed = sent = 0
    for index in sorted({turn * count // _SHARDS for turn in range(_SHARDS)} if count else ()):
        first, end = task.shards[index]
        requests = list(read_requests(task.built.table.slice(first, end - first)))
        prompts, _ = plan([one for one in requests if 1 <= one.start < len(one.token_ids)])
        computed += computed_tokens(prompts, block or _GPU_BLOCK)
        sent += task.costs[index]
    return computed / sent if sent else 1.0


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
