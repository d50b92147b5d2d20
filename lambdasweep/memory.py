"""Where the parents are expected to be kept, and what all replicas of this machine take of its memory."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdasweep.engine_defaults import default_replicas
from lambdasweep.monitor.wording import counted, size

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Memory:
    """All sizes are bytes."""

    tier: str
    each: str  # says what a rank takes, and where
    replicas: int
    host: int  # taken by all replicas
    available: int
    total: int


def expected_memory(prepared: "Prepared") -> Memory | None:
    """Return what the replicas of this machine will take; None where another machine decides, or nothing is kept.

    Raises:
        InputError: the tier that was asked for does not fit.
    """
    from merge.text_part import only_text
    from serve.engine import free_memory
    from serve.settings import available_cores
    from serve.switch.tiers import RELOAD, choose

    config, settings, pair = prepared.config, prepared.settings, only_text(prepared.pair)
    # Stages are not quite equal: the first has the embedding, the last the LM head.
    ranks, parents = settings.ranks, pair.nbytes // settings.ranks
    replicas = config.replicas or (default_replicas(len(available_cores()), ranks) if settings.device == "cpu" else 1)
    room = free_memory(settings, replicas * ranks)
    if settings.device == "cuda" and not room.device_total:
        return None
    live = sum(elements(info.shape) for info in pair.shaped.tensors.values()) * {"float32": 4}.get(settings.dtype, 2)
    if settings.device == "cuda":
        room = dataclasses.replace(room, device_free=room.device_free - live // ranks)
    tier = RELOAD if config.parents == RELOAD else choose(config.parents, parents, room)
    if settings.device == "cuda":
        host = parents * room.ranks if tier == "pinned" else 0
        each = f"{size(parents)} a rank beside {size(live // ranks)} live, of {size(room.device_free)} free"
    else:
        kept = 0 if tier in ("mmap", RELOAD) else replicas * ranks * parents
        host = replicas * (live + ranks * (settings.kv_cache_bytes or 0)) + kept
        each = f"{size(parents)} a rank"
        if tier == "mmap":
            each = f"{size(pair.stored_bytes)} in the page cache, shared by all ranks"
    return Memory(tier, each, replicas, host, room.host_available, room.host_total)


def describe_memory(prepared: "Prepared") -> str:
    """Say in a line of the plan what `expected_memory` returns."""
    if prepared.config.parents == "reload":
        return "memory    parents in the page cache; every switch goes through vLLM's own loader (--parents reload)"
    found = expected_memory(prepared)
    if found is None:
        from merge.text_part import only_text

        ranks = prepared.settings.ranks
        parents = only_text(prepared.pair).nbytes // ranks
        return (
            f"memory    parents: {size(parents)} a rank, in GPU memory, else pinned ({size(parents * ranks)} a replica), "
            "else in the page cache; decided on the GPU's own machine, by what is free there"
        )
    return (
        f"memory    parents: {found.tier}, {found.each}; host memory {size(found.host)} for "
        f"{counted(found.replicas, 'replica')}, of {size(found.available)} available"
    )


def elements(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a tensor."""
    count = 1
    for side in shape:
        count *= side
    return count
