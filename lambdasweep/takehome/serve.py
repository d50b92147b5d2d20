"""`lambdasweep serve` starts vLLM's server with θ(λ) live at the point that was asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import InputError
from contract.points import role
from lambdasweep.engine_defaults import server_defaults
from lambdasweep.takehome.point import PointSource, fingerprints_of

if TYPE_CHECKING:
    from merge.pair import Pair


def serve_point(source: PointSource, parents: str, flags: Sequence[str], say: Callable[[str], None]) -> None:
    """Serve θ(λ) until the process is told to stop.

    Args:
        source: the pair, and the λ to begin with.
        parents: the place where ranks keep the parents, as in a sweep.
        flags: further flags of `vllm serve`.
        say: a function that is called with one line of news at a time.

    Raises:
        InputError: an argument is wrong.
        PairError: the parents do not fit together.
        RunMismatchError: a parent is another one than the run's.
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
    defaults = server_defaults(pair, device, source.run.record.engine if source.run else {})
    aligned = {one: pair.opened[role(one)].path for one in pair.aligned_by_name}
    serve(
        Serving(
            pair.opened["base"].path,
            aligned,
            pair.line,
            source.lam,
            parents,
            served_name(pair),
            tuple(flags),
            defaults,
            pair.files,
        )
    )


def served_name(pair: "Pair") -> str:
    """Return the name that the server knows its model by."""
    return f"{'-'.join(Path(one.source).name for one in pair.aligned_by_name.values()) or 'model'}-lambda"


def name_at(served: str, lam: str) -> str:
    """Return a name of the served model that says the λ, without a sign that separates arguments of evaluators.

    Args:
        served: what `served_name` returns.
        lam: the canonical point; other points of the same checkpoints have other names.
    """
    return f"{served}-{lam.replace('=', '-').replace(',', '-')}"
