"""`lambdasweep serve`: from what was asked for to vLLM's server with θ(λ) live."""

from collections.abc import Callable, Sequence
from pathlib import Path

from contract.errors import InputError
from lambdasweep.engine_defaults import server_defaults
from lambdasweep.takehome.point import Source, fingerprints_of


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
    defaults = server_defaults(pair, device, source.run.record.engine if source.run else {})
    aligned = {one: checkpoint.path for one, checkpoint in pair.aligned_by_name.items()}
    serve(Serving(pair.base.path, aligned, pair.line, source.lam, parents, name, tuple(flags), defaults))
