"""`lambdasweep export` writes the point that was asked for as a checkpoint on disk."""

from collections.abc import Callable
from pathlib import Path

from contract.errors import InputError, join
from contract.points import parent_names
from contract.writable import check_writable
from lambdasweep.takehome.model_card import model_card
from lambdasweep.takehome.point import PointSource, fingerprints_of

_LEAST = 10_000  # bytes of a weight file: whoever gives less forgot the unit


def export_point(source: PointSource, out: Path, like: str, max_shard_size: str, say: Callable[[str], None]) -> int:
    """Write θ(λ) to `out` and return the number of bytes of its weights.

    Args:
        source: the pair and λ.
        out: a directory that does not exist yet.
        like: the parent whose config, tokenizer and chat template go with the weights: base, aligned, or the name of one of
            several.
        max_shard_size: the largest size of a weight file, such as 5GB.
        say: a function that is called with one line of news at a time.

    Raises:
        InputError: an argument is wrong, or `merge.export.export` refuses the export.
        PairError: the parents do not fit together, or NaN or infinity came out.
        RunMismatchError: a parent is another one than the run's.
        OSError: the disk is full or not writable.
    """
    from merge.export import ExportPlan, check_target, export
    from merge.file_layout import parse_size
    from merge.pair import open_pair
    from serve.settings import available_cores

    failures: list[InputError] = []
    if like not in (known := parent_names(source.aligned)):
        failures.append(InputError(f"--like {like} is no parent: give {', '.join(known[:-1])} or {known[-1]}"))
    max_shard_bytes = _LEAST
    try:
        max_shard_bytes = parse_size(max_shard_size)
        if max_shard_bytes < _LEAST:
            raise InputError(f"--max-shard-size {max_shard_size} is {max_shard_bytes} bytes: write the unit, as in 5GB")
    except InputError as error:
        failures.append(error)
    try:
        check_target(out)
        check_writable(out)
    except InputError as error:
        failures.append(error)
    if failures:
        raise join(failures, "the point cannot be exported")
    pair = open_pair(source.base, source.aligned, source.base_revision, source.aligned_revision, source.line)
    if like == "base" and pair.line.has_aligned_shapes:
        raise InputError("--like base does not go with --vocab shared: the model has aligned's vocabulary and shapes")
    for warning in pair.warnings:
        say(f"warning: {warning}")
    if source.run is not None:
        say(f"λ = {source.lam}: {source.run.chosen_by}")
    fingerprints = fingerprints_of(pair, source.run)
    plan = ExportPlan(pair, fingerprints, source.lam, like, out, max_shard_bytes)
    card = model_card(pair, fingerprints, source.lam, like, source.run)
    return export(plan, card, len(available_cores()) + 2, say)
