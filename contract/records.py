"""This module reads sweep.json and plan.json as records, which say what a run directory is and what it was asked for.

A command reads each of them once; everything behind that is given the records.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

from contract import points
from contract.errors import InputError
from contract.location import Location
from contract.rundir import RunDir
from contract.units import rescored_name

T = TypeVar("T")

# Only one kind of tasks has these fields in the file.
_SCORED_ONLY = ("format", "shots", "seed", "template", "system_prompt", "duplicates", "groups")
SAMPLED_ONLY = ("samples", "temperature", "max_tokens", "stop_token_ids")
ANSWERED_ONLY = (
    "top_p",
    "top_k",
    "until",
    "normaliser",
    "equivalence",
    "metric",
    "think_end_token",
    "p_true",
    "verbalised",
    "verbalised_suffix",
    "rescored",
)


@dataclass(frozen=True, slots=True)
class ParentRecord:
    """Describes one parent of a run."""

    source: str = ""  # an absolute path, or a hub id
    revision: str | None = None  # the revision of a hub id; None for a path
    fingerprint: str = ""  # the hash of the content
    tokenizer_sha256: str | None = None

    @property
    def name(self) -> str:
        """Return the last part of the path or of the hub id."""
        return PurePath(self.source).name or self.source


@dataclass(frozen=True, slots=True)
class LineRecord:
    """Describes the line between the parents."""

    method: str = "linear"
    lam_map: str = ""
    vocab: str = "strict"
    rows_from_aligned: Mapping[str, int] = field(default_factory=dict)
    ends_at_aligned: bool = True


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """Holds what sweep.json says: one pair, one engine and one set of versions for all tables of a run."""

    pair: Mapping[str, ParentRecord]  # the parents by role, which is base, aligned or aligned.NAME
    engine: Mapping[str, Any]  # the engine's `serve.settings.EngineSettings`
    versions: Mapping[str, str]
    line: LineRecord | None = None  # None in runs that are older than lines
    schema: int | None = None
    tokenizer: str | None = None  # whose tokenizer is used

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the aligned checkpoints, sorted; the only one's is ""."""
        return points.names_of(self.pair)

    @property
    def parents(self) -> dict[str, str]:
        """Return the point of each parent that a run can be at: `base`, and `aligned` or each of several by its name.

        Aligned parents are missing where a map weighs λ so that λ = 1 is no parent.
        """
        found = points.parents(self.names)
        return {
            name: lam for name, lam in found.items() if name == "base" or not self.line or self.line.ends_at_aligned
        }

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return the content hashes of the parents by role."""
        return {role: parent.fingerprint for role, parent in self.pair.items()}

    def table_identity(self) -> dict[str, Any]:
        """Return what every table of the run carries about where it came from."""
        return {
            "schema": self.schema,
            **self.fingerprints,
            "line": _plain(self.line),
            "engine": self.engine,
            "versions": self.versions,
        }

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _plain(self)
        return found


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """Holds what plan.json says of a task."""

    lambdas: tuple[str, ...] = ()  # the canonical points that were asked for so far, in order
    shards: tuple[tuple[int, int], ...] = ()  # [first row, end row) of each shard
    costs: tuple[int, ...] = ()  # the cost of each shard, in tokens
    scored_as: str = "choices"  # choices, contexts, continuation, other, samples, or answers
    file: str | None = None
    sha256: str | None = None  # the hash of the file
    requests_sha256: str | None = None
    chat_template_sha256: str | None = None
    system_prompt: str | None = None  # what the chat template's system message says
    groups: tuple[str, ...] = ()  # the groups of lm-eval that it belongs to
    limit: int | None = None
    documents: int | None = None
    requests: int | None = None
    # These are None unless the task is scored, or its answers are written (duplicates apart).
    format: str | None = None
    shots: int | None = None
    seed: int | None = None
    template: str | None = None
    duplicates: int | None = None
    pmi: bool | None = None  # whether its choices are also scored without their documents
    # These are None unless it is a generate task, or its answers are written.
    samples: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    # These are None unless the model writes its answers.
    top_p: float | None = None
    top_k: int | None = None
    until: tuple[str, ...] | None = None  # the texts that an output ends before
    normaliser: str | None = None  # says which answers are the same
    equivalence: str | None = None  # the hash of the model that says which answers mean the same
    metric: str | None = None  # what an output is right by
    think_end_token: str | None = None  # a text, or a token's id, that ends the thinking before an answer
    p_true: str | None = None  # the question whether an answer is right
    verbalised: str | None = None  # the regular expression that finds how sure an output says it is
    verbalised_suffix: str | None = None  # the text behind each prompt that asks for it
    rescored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the canonical points under which outputs are scored again: the λs whose outputs are; it grows as λs do."""

    @property
    def is_sampled(self) -> bool:
        """Tell whether this is a generate task."""
        return self.scored_as == "samples"

    @property
    def is_answered(self) -> bool:
        """Tell whether the model writes its answers, and they are graded."""
        return self.scored_as == "answers"

    @property
    def completion(self) -> str:
        """Return the kind of table that is the completion record of a unit."""
        return "generations" if self.is_sampled or self.is_answered else "tokens"

    def parts(self, name: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield what the units of a task of this name are called, the kind of table that completes one, and their λs."""
        yield name, self.completion, self.lambdas
        for under, lambdas in self.rescored.items():
            yield rescored_name(name, under), "rescored", lambdas

    def to_json(self) -> dict[str, Any]:
        left_out: tuple[str, ...] = (*SAMPLED_ONLY, *ANSWERED_ONLY)
        if self.is_sampled:
            left_out = (*_SCORED_ONLY, *ANSWERED_ONLY)
            if self.system_prompt is not None:
                left_out = tuple(name for name in left_out if name != "system_prompt")
        elif self.is_answered:
            left_out = ("duplicates",)
        if self.pmi is None:
            left_out = (*left_out, "pmi")
        return {name: value for name, value in _plain(self).items() if name not in left_out}


@dataclass(frozen=True, slots=True)
class EachRecord:
    """Holds what plan.json says of a command of the user that runs at every λ."""

    command: tuple[str, ...]  # its words
    files: Mapping[str, str]  # the SHA-256 of each file among them, by its path
    lambdas: tuple[str, ...]  # the canonical points that were asked for so far, in order

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _plain(self)
        return found


Plan = Mapping[str, TaskRecord]  # the records by task


def read_sweep(run: RunDir) -> SweepRecord:
    """Read sweep.json.

    Raises:
        InputError: `run` holds no sweep, or the file is damaged.
    """
    return sweep_of(run.sweep_json, run.sweep())


def sweep_of(path: Location, value: Mapping[str, Any]) -> SweepRecord:
    """Return the record of what is in sweep.json, or in score.json, which has the same entries; raises as `read_sweep`."""

    def make() -> SweepRecord:
        line = value.get("line")
        return SweepRecord(
            pair={role: _known(ParentRecord, parent) for role, parent in value["pair"].items()},
            engine=value["engine"],
            versions=value["versions"],
            line=_known(LineRecord, line) if line is not None else None,
            schema=value.get("schema"),
            tokenizer=value.get("tokenizer"),
        )

    return whole(path, make)


def read_plan(run: RunDir) -> dict[str, TaskRecord]:
    """Read the tasks of plan.json.

    Raises:
        InputError: `run` holds no sweep, or the file is damaged.
    """
    return _plan_of(run.plan_json, run.plan())


@dataclass(frozen=True, slots=True)
class Asked:
    """Holds all that plan.json says."""

    plan: Plan
    margin: float | None
    """The accuracy that λ* may give up, as a share of documents, where it was asked for."""
    each: EachRecord | None  # the command of the user that measured everything; None where the run is a sweep

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"tasks": {name: task.to_json() for name, task in self.plan.items()}}
        if self.margin is not None:
            found["margin"] = self.margin
        if self.each is not None:
            found["each"] = self.each.to_json()
        return found


def read_asked(run: RunDir) -> Asked:
    """Read plan.json.

    Raises:
        InputError: as `read_plan`.
    """
    return asked_of(run.plan_json, run.plan())


def asked_of(path: Location, value: Mapping[str, Any]) -> Asked:
    """Return the record of what is in plan.json; raises as `read_plan`."""
    margin, each = value.get("margin"), value.get("each")
    return Asked(
        _plan_of(path, value),
        whole(path, lambda: None if margin is None else float(margin)),
        whole(path, lambda: each and EachRecord(tuple(each["command"]), dict(each["files"]), tuple(each["lambdas"]))),
    )


@dataclass(frozen=True, slots=True)
class Begun:
    """Holds both records of a run directory that may be new."""

    asked: Asked  # it has no tasks where there is no plan.json
    sweep: SweepRecord | None  # None where there is no sweep.json


def read_begun(run: RunDir) -> Begun:
    """Read plan.json and sweep.json as far as they are there.

    Raises:
        InputError: one of them is damaged.
    """
    asked = read_asked(run) if run.plan_json.is_file() else Asked({}, None, None)
    return Begun(asked, read_sweep(run) if run.exists() else None)


def read_each(run: RunDir) -> EachRecord | None:
    """Read what plan.json says of a command of the user; None where the run is a sweep.

    Raises:
        InputError: as `read_plan`.
    """
    return read_asked(run).each


def _plan_of(path: Location, value: Mapping[str, Any]) -> dict[str, TaskRecord]:
    return whole(path, lambda: {name: _task(task) for name, task in value["tasks"].items()})


def _task(value: Mapping[str, Any]) -> TaskRecord:
    found = _known(TaskRecord, value)
    return dataclasses.replace(
        found,
        lambdas=tuple(found.lambdas),
        shards=tuple((first, end) for first, end in found.shards),
        costs=tuple(found.costs),
        groups=tuple(found.groups),
        rescored={under: tuple(found.rescored[under]) for under in sorted(found.rescored, key=points.order)},
        stop_token_ids=None if found.stop_token_ids is None else tuple(found.stop_token_ids),
        until=None if found.until is None else tuple(found.until),
    )


def _known(kind: type[T], value: Mapping[str, Any]) -> T:
    """Make a record of the keys that it knows: a file of another version may have others."""
    names = {one.name for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: one for name, one in value.items() if name in names})


def whole(path: Location, make: Callable[[], T]) -> T:
    """Return what is made of a file.

    Raises:
        InputError: it cannot be made, because the file is damaged.
    """
    try:
        return make()
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it, or start again in another directory") from None


def _plain(value: Any) -> Any:
    """Return a record as what JSON knows."""
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
