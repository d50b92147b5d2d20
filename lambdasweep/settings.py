"""The settings of a pair and of its engines. Each is one field: its flag, its key in a settings file, its help and its check
follow from the annotation. Imports nothing heavy.

`run`, `plan` and `score` take all of them, `export` and `serve` those that say which pair it is.
"""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from contract.points import by_name, parent_names


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said of a field."""

    help: str
    metavar: str | None = None
    least: int | None = None  # of a number
    choices: Callable[[Mapping[str, Any]], Collection[str]] | None = (
        None  # all values that were given → what this may be
    )


def _methods(_: Mapping[str, Any]) -> Collection[str]:
    from merge.methods import METHODS

    return METHODS


def _vocabularies(_: Mapping[str, Any]) -> Collection[str]:
    from merge.line import VOCABULARIES

    return VOCABULARIES


def _tiers(_: Mapping[str, Any]) -> Collection[str]:
    from serve.switch.tiers import CHOICES

    return CHOICES


def _dtypes(_: Mapping[str, Any]) -> Collection[str]:
    return "auto", "float32", "bfloat16", "float16"


def _parents(given: Mapping[str, Any]) -> Collection[str]:
    return parent_names(by_name(given.get("aligned", "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """What is asked of a pair and its engines. None means: lambdasweep chooses, and records what it chose."""

    replicas: Annotated[
        int | None,
        Setting("vLLM engines at the same time; without it, as many as there is room for.", least=1),
    ] = None
    tp: Annotated[int, Setting("Tensor-parallel ranks of each engine.", least=1)] = 1
    pp: Annotated[int, Setting("Pipeline stages of each engine, of --tp ranks each.", least=1)] = 1
    dtype: Annotated[str, Setting("float32, bfloat16, float16 or auto.", choices=_dtypes)] = "auto"
    """What engines compute in; auto: float32 on a CPU, the checkpoint's on a GPU."""
    max_model_len: Annotated[int | None, Setting("Longest request in tokens.", least=1)] = None
    """None: the longest request of the tasks, rounded up; where requests are not known beforehand, what the model takes."""
    engine: Annotated[dict[str, Any], Setting("Further vLLM arguments.", metavar="KEY=VALUE")] = field(
        default_factory=dict
    )
    base_revision: Annotated[str | None, Setting("Branch, tag or commit of a hub id.")] = None
    aligned_revision: Annotated[
        str | Mapping[str, str | None] | None, Setting("Branch, tag or commit of a hub id.")
    ] = None
    method: Annotated[
        str, Setting("From base to aligned: linear, or slerp along the arc of each tensor.", choices=_methods)
    ] = "linear"
    lam_map: Annotated[
        str,
        Setting("Weights on λ by module: layers.0-9=0.3,layers.10-=0.8.", metavar="PATTERN=WEIGHT,…"),
    ] = ""
    """As in `merge.lam_map`; empty: 1 everywhere."""
    vocab: Annotated[
        str,
        Setting(
            "Where vocabularies differ: strict (refuse) or shared (take aligned's rows of other tokens).",
            choices=_vocabularies,
        ),
    ] = "strict"
    tokenizer: Annotated[str, Setting("Whose tokenizer: base or aligned.", choices=_parents)] = "base"
    """Whose tokenizer makes the requests: base, aligned or one of several by name; aligned where vocab is shared."""
    parents: Annotated[
        str,
        Setting("Where ranks keep both parents: auto, device, pinned, mmap or reload (nowhere).", choices=_tiers),
    ] = "auto"
    """Changes no number."""
    accelerator_type: Annotated[str | None, Setting("Use only GPUs of this kind, by Ray's name: H100, say.")] = None
    address: Annotated[str | None, Setting("A running Ray cluster; without it one is started here.")] = None


def settings() -> Iterator[tuple[str, type, Setting]]:
    """Yield the name of each setting, what its flag takes (`int`, `str`, or `dict` of repeated KEY=VALUE), and the rest."""
    hints = get_type_hints(PairSettings, include_extras=True)
    for one in dataclasses.fields(PairSettings):
        hint, said = get_args(hints[one.name])
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        found = {get_origin(kind) or kind for kind in kinds}
        yield one.name, next(kind for kind in (int, dict, str) if kind in found), said


def names_of(kind: type) -> tuple[str, ...]:
    """Return the names of the settings whose flags take an `int`, a `str` or a `dict`."""
    return tuple(name for name, one, _ in settings() if one is kind)


def problems_of(values: Mapping[str, Any]) -> list[str]:
    """Return which values are too small, or none of those that there are."""
    found = []
    for name, _, said in settings():
        value = values.get(name)
        if said.least is not None and value is not None and value < said.least:
            found.append(f"--{name.replace('_', '-')} is {value}: give {said.least} or more")
    for name, _, said in settings():
        if said.choices and name in values and values[name] not in (known := said.choices(values)):
            found.append(f"--{name.replace('_', '-')} is {values[name]!r}: use {', '.join(known)}")
    return found
