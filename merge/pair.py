"""A pair holds checkpoints of one architecture, checked so that the line between them means something.

One is base and one is aligned; or several are aligned, each with a name, and θ is on the plane through base and all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from contract.errors import PairError
from contract.points import by_name, names_of, role
from merge.checkpoint import Checkpoint, files_of, natural_key, open_checkpoint
from merge.config_meaning import compare_configs
from merge.file_states import FileState
from merge.lam_map import parse_map, resolve_map
from merge.line import STRAIGHT, Line
from merge.parents import FLOATS, resolve
from merge.vocabulary import RowRanges, aligned_rows, compare_vocabularies, has_vocabulary_rows

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """The parents, which passed every check made so far, and the line between them.

    `warnings` names differences that do not stop a sweep.
    """

    base: Checkpoint
    aligned_by_name: Mapping[str, Checkpoint]  # sorted by name; the name of an only one is ""
    warnings: tuple[str, ...]
    line: Line = STRAIGHT
    weights: Mapping[str, str] = field(default_factory=dict)  # the factors on λ, for the tensors that the map names
    aligned_rows: Mapping[str, RowRanges] = field(default_factory=dict)
    """The rows that are aligned's at every λ, by the tensor's name; there are none with a strict vocabulary."""
    opened: Mapping[str, Checkpoint] = field(default_factory=dict, compare=False)
    """The checkpoints as they were opened, by role: what fingerprints stand for, and what engines are given the path of."""

    @property
    def aligned(self) -> Checkpoint:
        """Return the aligned checkpoint; of several, the first by name, whose tokenizer and template stand for all."""
        return next(iter(self.aligned_by_name.values()))

    @property
    def parents(self) -> dict[str, Checkpoint]:
        """Return all parents by role: `base`, then `aligned` or each `aligned.NAME`, as `merge.interpolate` orders them."""
        return {"base": self.base} | {role(name): one for name, one in self.aligned_by_name.items()}

    def parent(self, name: str) -> Checkpoint:
        """Return the parent that a user calls by this name: `base`, `aligned`, or the name of an aligned checkpoint."""
        return {"base": self.base, "aligned": self.aligned, **self.aligned_by_name}[name]

    @property
    def files(self) -> dict[Path, FileState]:
        """Return the weight files of all parents, with their states before they were opened."""
        return files_of(self.opened.values())

    @property
    def shaped(self) -> Checkpoint:
        """Return the parent whose config, shapes and tokenizer θ(λ) has."""
        return self.aligned if self.line.has_aligned_shapes else self.base

    @property
    def ends_at_aligned(self) -> bool:
        """Tell whether θ(1) is the aligned parent, which a map of weights on λ may prevent."""
        return all(self.weights.get(name, "1") == "1" for name in self.base.tensors)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors of all parents together."""
        return sum(parent.nbytes for parent in self.parents.values())

    def held_bytes(self, ranks: int) -> tuple[int, int]:
        """Return the bytes of all parents that each of some ranks keeps: of tensors, and of factors of adapters, whole."""
        shared, factors = self.base.nbytes, 0
        adapters = {called for called, one in self.opened.items() if one.is_adapter}
        for name, one in self.aligned_by_name.items():
            for tensor, info in one.tensors.items():
                base = self.base.tensors[tensor] if role(name) in adapters else None
                if info.update is not None and replace(info, update=None) == base:
                    factors += info.update.up.nbytes + info.update.down.nbytes
                elif info != base:
                    shared += info.nbytes
        return shared // ranks, factors

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that all parents take where they lie: of an adapter, those of its factors."""
        adapters = {called: one.nbytes for called, one in self.opened.items() if one.is_adapter}
        return sum(adapters.get(called, parent.nbytes) for called, parent in self.parents.items())


def open_pair(
    base: str,
    aligned: str | Mapping[str, str],
    base_revision: str | None = None,
    aligned_revision: str | Mapping[str, str | None] | None = None,
    line: Line = STRAIGHT,
) -> Pair:
    """Open all checkpoints and compare their configs, tensor names, shapes, dtypes and vocabularies with base's.

    This reads headers and tokenizers only; `merge.fingerprints.fingerprint` reads the weights.

    Args:
        base: the directory or hub id of base.
        aligned: the directory or hub id of the aligned checkpoint, or those of several by name.
        base_revision: the branch, tag or commit of base's hub id.
        aligned_revision: the branch, tag or commit of the aligned hub id, or those of several by name.
        line: the line between the parents.

    Raises:
        PairError: the checkpoints do not fit together, or a line between two was asked for over several; the error lists
            every mismatch of every checkpoint.
        InputError: the line's map does not fit the tensors.
    """
    problems: list[str] = []
    sources, revisions = by_name(aligned), by_name(aligned_revision)
    if len(sources) > 1:
        problems += line.two_parents_only()
    opened: dict[str, Checkpoint] = {}
    for name, source, revision in (
        ("base", base, base_revision),
        *((role(name), source, revisions.get(name)) for name, source in sources.items()),
    ):
        try:
            opened[name] = open_checkpoint(source, name, revision)
        except PairError as error:
            problems += [f"{error.title}: {problem}" for problem in error.problems] or [error.title]
    if problems:
        raise PairError("the pair cannot be opened", problems)
    warnings: list[str] = []
    is_shared = line.vocab == "shared"
    parents = resolve(opened, problems, warnings, is_shared)
    if problems:
        raise PairError("base and aligned do not fit together", problems)
    one = parents["base"]
    for name in sources:
        two = parents[role(name)]
        wrong: list[str] = []
        told: list[str] = []
        compare_configs(one.config, two.config, wrong, told, is_shared)
        _compare_tensors(one, two, wrong, is_shared)
        compare_vocabularies(one.path, two.path, wrong, told, is_shared)
        whose = f"{role(name)}: " if name else ""
        problems += [f"{whose}{problem}" for problem in wrong]
        warnings += [f"{whose}{warning}" for warning in told]
    if problems:
        raise PairError("base and aligned do not fit together", problems)
    pair = _paired(opened, parents, line)
    for name, ranges in pair.aligned_rows.items():
        rows = sum(stop - start for start, stop in ranges)
        warnings.append(
            f"{rows} of {pair.aligned.tensors[name].shape[0]} rows of {name} are aligned's at every λ: their token ids "
            "stand for other strings in base, or are not in it"
        )
    return replace(pair, warnings=tuple(warnings))


def put_together(opened: Mapping[str, Checkpoint], line: Line) -> Pair:
    """Make a pair from the headers and tokenizers of checkpoints that fit together, which `open_pair` checks.

    Args:
        opened: base and all aligned checkpoints, by role.
        line: the line between them.

    Raises:
        InputError: the line's map does not fit the tensors.
    """
    return _paired(opened, resolve(opened, [], [], line.vocab == "shared"), line)


def _paired(opened: Mapping[str, Checkpoint], parents: Mapping[str, Checkpoint], line: Line) -> Pair:
    base = parents["base"]
    aligned = {name: parents[role(name)] for name in names_of(parents)}
    pair = Pair(base, aligned, (), line, opened=dict(opened))
    weights = resolve_map(parse_map(line.lam_map), pair.aligned.tensors)
    rows = aligned_rows(base, pair.aligned) if line.vocab == "shared" else {}
    return replace(pair, weights=weights, aligned_rows=rows)


def _compare_tensors(base: Checkpoint, aligned: Checkpoint, problems: list[str], is_shared: bool) -> None:
    def named(what: str, names: set[str]) -> None:
        if names:
            shown = sorted(names, key=natural_key)
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            problems.append(f"{what}: {', '.join(shown[:_SHOWN])}{more}")

    named("tensors only in base", base.tensors.keys() - aligned.tensors.keys())
    named("tensors only in aligned", aligned.tensors.keys() - base.tensors.keys())
    differing: list[str] = []
    for name in base.tensors.keys() & aligned.tensors.keys():
        one, two = base.tensors[name], aligned.tensors[name]
        has_rows = has_vocabulary_rows(name)
        skipped = int(is_shared and has_rows)
        if (one.shape[skipped:], one.dtype) != (two.shape[skipped:], two.dtype):
            is_rows = has_rows and one.shape[1:] == two.shape[1:]
            differing.append(
                f"{name} is {list(one.shape)} {one.dtype} in base and {list(two.shape)} {two.dtype} in aligned"
                + ("; --vocab shared takes the rows that base lacks from aligned" if is_rows else "")
            )
    differing.sort(key=natural_key)
    problems += differing[:_SHOWN]
    if len(differing) > _SHOWN:
        problems.append(f"and {len(differing) - _SHOWN} more tensors of different shape or dtype")
    unusable = {name for name, info in base.tensors.items() if info.dtype not in FLOATS}
    named("tensors that are not F16, BF16 or F32 cannot be interpolated", unusable)
