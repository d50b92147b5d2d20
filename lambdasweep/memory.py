"""This module computes where the parents are expected to be kept, and what all replicas here take of memory."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambdasweep.engine_defaults import default_replicas
from lambdasweep.engine_sizes import live_bytes, needs_of
from lambdasweep.monitor.wording import counted, size

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared
    from merge.pair import Pair
    from serve.settings import EngineSettings
    from serve.switch.tiers import Room


@dataclass(frozen=True, slots=True)
class Memory:
    """All sizes are bytes."""

    tier: str
    each: str  # says what a rank takes, and where
    replicas: int
    host: int  # all replicas together take so much of the host's memory
    room: "Room"  # what one rank finds; on a GPU the live weights are taken off
    tensors: int  # the tensors of all parents take so much in a rank
    live: int  # the live weights take so much in a rank

    @property
    def parents(self) -> int:
        """Return what a rank keeps of all parents: tensors, and the factors of adapters."""
        return self.tensors + self.room.factor_bytes

    @property
    def device(self) -> int:
        """Return what a rank takes of a GPU, what must stay free there included."""
        return self.live + self.room.device_reserve + (self.tensors if self.tier == "device" else 0)


def expected_memory(prepared: "Prepared") -> Memory | None:
    """Return what the replicas of this machine will take; None where another machine decides, or nothing is kept.

    Raises:
        InputError: the tier that was asked for does not fit.
    """
    from serve.engine import free_memory
    from serve.settings import available_cores

    config, settings = prepared.config, prepared.settings
    ranks = settings.ranks
    replicas = config.replicas or (default_replicas(len(available_cores()), ranks) if settings.device == "cpu" else 1)
    room = free_memory(settings, replicas * ranks)
    if settings.device == "cuda" and not room.device_total:
        return None
    return placed(prepared.pair, settings, config.parents, room, replicas)


def placed(pair: "Pair", settings: "EngineSettings", asked: str, room: "Room", replicas: int = 1) -> Memory:
    """Return where a pair goes: arithmetic over headers, settings and what a machine has.

    Args:
        pair: the parents, whole.
        settings: of the engines.
        asked: one of `serve.switch.tiers.CHOICES`.
        room: what one rank finds, before anything is loaded.
        replicas: of this machine.

    Raises:
        InputError: the tier that was asked for does not fit.
    """
    from merge.model_sizes import sizes_of
    from merge.text_part import only_text
    from serve.switch.tiers import RELOAD, tier_for

    held, ranks = only_text(pair), settings.ranks
    # Stages are not quite equal: the first has the embedding, the last the LM head.
    parents, factors = held.held_bytes(ranks)
    room = dataclasses.replace(room, factor_bytes=0 if asked == RELOAD else factors)
    live = live_bytes(pair, settings.dtype)
    if settings.device == "cuda":
        need = needs_of(settings, sizes_of(pair))
        free = room.device_free - live // ranks
        room = dataclasses.replace(
            room,
            device_free=free,
            kv_cache_bytes=settings.kv_cache_bytes,
            request_bytes=need.request,
            step_bytes=need.step,
        )
    tier = RELOAD if asked == RELOAD else tier_for(asked, parents, room)
    if settings.device == "cuda":
        host = parents * room.ranks if tier == "pinned" else 0
        brought = f" and {size(factors)} of factors in GPU memory" if factors else ""
        others = "steps, vLLM and the factors" if factors else "steps and vLLM"
        each = (
            f"{size(parents)} a rank{brought} beside {size(live // ranks)} live, of {size(max(room.device_free, 0))} free, "
            f"of which {size(room.device_reserve)} are for the KV cache, {others}"
        )
        if room.device_reserve > room.device_free:
            each += ", which may not fit: give more ranks (--tp)"
    else:
        kept = 0 if tier in ("mmap", RELOAD) else replicas * ranks * parents
        host = replicas * (live + ranks * (settings.kv_cache_bytes or 0)) + kept
        each = f"{size(parents + factors)} a rank"
        if tier == "mmap":
            each = f"{size(held.stored_bytes)} in the page cache, shared by all ranks"
    return Memory(tier, each, replicas, host, room, parents, live // ranks)


def describe_memory(prepared: "Prepared") -> str:
    """Say in a line of the plan what `expected_memory` returns."""
    if prepared.config.parents == "reload":
        return "memory    parents in the page cache; every switch goes through vLLM's own loader (--parents reload)"
    found = expected_memory(prepared)
    if found is None:
        from merge.text_part import only_text

        ranks = prepared.settings.ranks
        tensors, factors = only_text(prepared.pair).held_bytes(ranks)
        always = f", of which the factors, {size(factors)}, always are" if factors else ""
        return (
            f"memory    parents: {size(tensors + factors)} a rank, in GPU memory{always}, else pinned "
            f"({size(tensors * ranks)} a replica), else in the page cache; decided on the GPU's own machine, by what is "
            "free there"
        )
    return (
        f"memory    parents: {found.tier}, {found.each}; host memory {size(found.host)} for "
        f"{counted(found.replicas, 'replica')}, of {size(found.room.host_available)} available"
    )


def describe_cache(prepared: "Prepared") -> str:
    """Say how large the KV cache of a rank is."""
    cache = prepared.settings.kv_cache_bytes
    return f"KV cache {size(cache)} a rank" if cache is not None else "KV cache of what vLLM finds free"
