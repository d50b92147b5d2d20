"""`lambdasweep serve`: from what was asked for to vLLM's server with θ(λ) live."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError
from lambdasweep.prepare import CPU_WINDOW, GIB, kv_bytes_per_token
from lambdasweep.takehome.point import Source, fingerprints_of

if TYPE_CHECKING:
    from merge.pair import Pair


def serve_point(source: Source, parents: str, flags: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve until told to stop.

    Args:
        source: the pair, and λ to begin with.
        parents: where ranks keep both parents, as in a sweep.
        flags: of `vllm serve`.
        say: told one line of news at a time.

    Raises:
        InputError: bad input; a parent that is not the run's.
    """
    from merge.pair import open_pair
    from serve.http.server import Serving, serve
    from serve.settings import installed_device
    from serve.switch.tiers import CHOICES

    if parents not in CHOICES:
        raise InputError(f"--parents {parents} is unknown: give {', '.join(CHOICES)}")
    device = installed_device()
    pair = open_pair(source.base, source.aligned, source.base_revision, source.aligned_revision, source.line)
    for warning in pair.warnings:
        say(f"warning: {warning}")
    if source.run is not None:
        fingerprints_of(pair, source.run)
        say(f"λ = {source.lam}: {source.run.chosen_by}")
    name = f"{'-'.join(Path(one.source).name for one in pair.aligned_by_name.values()) or 'model'}-lambda"
    defaults = engine_defaults(pair, device, source.run.record["engine"] if source.run else {})
    aligned = {one: checkpoint.path for one, checkpoint in pair.aligned_by_name.items()}
    serve(Serving(pair.base.path, aligned, pair.line, source.lam, parents, name, tuple(flags), defaults))


def engine_defaults(pair: "Pair", device: str, recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the vLLM arguments that a server starts with where no flag says otherwise: a run's own, else a sweep's."""
    window = pair.max_position_embeddings or CPU_WINDOW
    defaults: dict[str, Any] = {"max_model_len": window}
    if device == "cpu":
        defaults |= {
            "max_model_len": min(window, CPU_WINDOW),
            "dtype": "float32",
            "block_size": 32,
            "enforce_eager": True,
        }
    defaults |= {key: recorded[key] for key in ("dtype", "max_model_len") if key in recorded}
    if recorded.get("tensor_parallel", 1) > 1:
        defaults["tensor_parallel_size"] = recorded["tensor_parallel"]
    if recorded.get("pipeline_parallel", 1) > 1 and device != "cpu":  # whose memory is one
        defaults["pipeline_parallel_size"] = recorded["pipeline_parallel"]
    if device == "cpu":
        context = defaults["max_model_len"] * kv_bytes_per_token(pair, defaults["dtype"])
        defaults["kv_cache_memory_bytes"] = max(GIB, 4 * context)
    return defaults
