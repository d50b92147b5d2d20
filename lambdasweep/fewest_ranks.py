"""This module finds the fewest tensor-parallel ranks whose GPUs hold the model."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lambdasweep.engine_sizes import live_bytes, needs_of

if TYPE_CHECKING:
    from merge.pair import Pair
    from serve.machine import Gpus
    from serve.settings import EngineSettings


def with_fewest_ranks(settings: "EngineSettings", pair: "Pair", gpus: "Gpus") -> "EngineSettings":
    """Return the settings with the fewest tensor-parallel ranks that hold the model, or with the most where none do.

    Ranks talk to each other in every layer and replicas do not, so that the fewest are the fastest.

    Args:
        settings: of an engine on GPUs, with the length of its longest request.
        pair: the parents, whole.
        gpus: what a node has.
    """
    from merge.model_sizes import sizes_of
    from merge.text_part import only_text
    from serve.switch.tiers import Room

    sizes, live = sizes_of(pair), live_bytes(pair, settings.dtype)
    _, factors = only_text(pair).held_bytes(1)
    found = settings
    for ranks in range(1, gpus.count // settings.pipeline_parallel + 1):
        if not sizes.can_be_dealt_to(ranks):
            continue
        found = replace(settings, tensor_parallel=ranks)
        need = needs_of(found, sizes)
        free = gpus.memory - live // found.ranks
        room = Room(
            0,
            0,
            found.ranks,
            gpus.memory,
            free,
            found.gpu_share,
            found.kv_cache_bytes,
            request_bytes=need.request,
            step_bytes=need.step,
            factor_bytes=factors,
        )
        if room.device_reserve <= free:
            break
    return found
