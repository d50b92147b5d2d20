"""How long a sweep takes, as far as that can be told beforehand: how many tokens are computed, and how fast."""

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

# What a replica is assumed to reach of its peak. CPU: float32 GEMMs of a small model in vLLM. GPU: bf16 on an H100.
FLOPS_PER_CORE = 60e9
FLOPS_PER_GPU = 0.4 * 990e12
_GPU_BLOCK = 16  # tokens of a block of the KV cache where vLLM chooses
_SHARDS = 4  # of a task, that are looked at
_READ_SECONDS = 2.0  # for receipts
_DONE = {"tokens": "scored", "generations": "sampled"}  # what is done to tokens, by the table that completes a unit


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is left of a sweep, by estimate."""

    tokens: int  # computed
    seconds: float  # engine starts apart
    basis: str  # what the seconds rest on


def ahead(prepared: "Prepared", left: Sequence[Unit], run: RunDir | None) -> Ahead:
    """Return what is left to do.

    Args:
        prepared: the sweep.
        left: its units that are not committed.
        run: its directory, where it was begun: what was observed there then counts.
    """
    from merge.model_sizes import sizes_of

    caches = not sizes_of(prepared.pair).is_hybrid  # as `serve.prefixes` has it
    block = prepared.settings.block_size
    shares = {name: computed_share(task, block) if caches else 1.0 for name, task in prepared.tasks.items()}
    tokens = dict.fromkeys(_DONE, 0.0)
    for unit in left:
        tokens["generations" if unit.task in prepared.prompts else "tokens"] += unit.cost * shares.get(unit.task, 1.0)
    settings, replicas = prepared.settings, prepared.config.replicas
    cores = len(os.sched_getaffinity(0))
    if replicas is None:
        replicas = default_replicas(cores, settings.ranks) if settings.device == "cpu" else 1
    seen = _observed(run) if run is not None else {}
    seconds, bases = 0.0, dict[str, str]()
    for kind, count in tokens.items():
        if count and kind in seen:
            rate, units = seen[kind]
            seconds += count / (rate * replicas)
            so_far = f"at {rate:.0f} tokens/s a replica, as in the {counted(units, 'unit')} so far"
            bases[kind] = f"{so_far}, {counted(replicas, 'replica')}"
    guessed = sum(count for kind, count in tokens.items() if kind not in bases)
    if guessed or not bases:
        if settings.device == "cpu":
            rate, what = FLOPS_PER_CORE * cores, f"{counted(cores, 'core')} at {FLOPS_PER_CORE / 1e9:.0f} GFLOP/s"
        else:
            gpus = replicas * settings.ranks
            rate = FLOPS_PER_GPU * gpus
            what = f"{counted(gpus, 'GPU')} at {FLOPS_PER_GPU / 1e12:.0f} TFLOP/s, 40 % of an H100's in bfloat16"
        seconds += 2 * active_parameters(prepared) * guessed / rate
        flops = f"2 FLOP × parameters × tokens computed, {what}"
        bases |= {kind: flops for kind, count in tokens.items() if count and kind not in bases}
    if len({*bases.values()}) > 1:
        basis = "; ".join(f"{_DONE[kind]} {text}" for kind, text in bases.items())
    else:
        basis = next(iter(bases.values())) if bases else flops
    return Ahead(round(sum(tokens.values())), seconds, basis)


def _observed(run: RunDir) -> dict[str, tuple[float, int]]:
    """Return the tokens that a replica computed in a second so far, switches included, and in how many units.

    By what completes a unit: a sampled token takes longer than one that is scored.
    """
    from lambdasweep.monitor.run_counts import RunCounts

    counts = RunCounts(run)
    counts.refresh(_READ_SECONDS)
    return {
        kind: (spent.tokens_scheduled / spent.seconds, spent.receipts)
        for kind, spent in counts.spent_on.items()
        if spent.tokens_scheduled and spent.seconds
    }


def active_parameters(prepared: "Prepared") -> int:
    """Return the parameters that a token goes through: of experts, those that it is sent to."""
    from merge.model_sizes import sizes_of
    from merge.text_part import only_text

    tensors: Mapping[str, TensorInfo] = only_text(prepared.pair).shaped.tensors
    share = sizes_of(prepared.pair).expert_share
    return round(sum(math.prod(info.shape) * (share if ".experts." in name else 1) for name, info in tensors.items()))


def computed_share(task: "PreparedTask", block: int | None) -> float:
    """Return which share of the tokens of a task's requests is computed, judging by some of its shards.

    What prompts of a unit begin with alike is computed once, in whole blocks of `block` tokens; requests of a document that
    differ in their last token only are one prompt (`serve.scoring`).
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
    known: dict[tuple[int, tuple[int, ...]], int] = {}  # a block and what is before it
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
