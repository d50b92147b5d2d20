"""This module says in words what a run is, and which of its requests could not be scored."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.records import EachRecord, Plan, SweepRecord
from contract.rundir import RunDir

SHOWN_IDS = 20
_TASK_KEYS = (
    *("file", "format", "shots", "limit", "seed", "documents", "requests", "duplicates"),
    *(
        "samples",
        "temperature",
        "max_tokens",
        "stop_token_ids",
        "template",
        "chat_template_sha256",
        "system_prompt",
        "sha256",
    ),
)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """This is one reason why requests of a task could not be scored."""

    task: str  # TASK@λ where its outputs were scored again under another λ
    reason: str
    count: int  # the number of pairs (request, λ)
    lambdas: tuple[str, ...]
    request_ids: tuple[int, ...]  # the first SHOWN_IDS ids, ascending
    requests: int  # the number of different requests

    @property
    def is_rescored(self) -> bool:
        """Tell whether these are outputs that another λ could not score, which nothing else is missing of."""
        return "@" in self.task


def identity(sweep: SweepRecord) -> list[tuple[str, str]]:
    """Return everything that sweep.json says, as (name, value); the parents come first."""
    value = sweep.to_json()
    roles = sorted(sweep.pair, key=lambda role: (role != "base", role))
    parents = [pair for role in roles for pair in _flat(role, value["pair"][role])]
    return [*parents, *(pair for key in sorted(value.keys() - {"pair"}) for pair in _flat(key, value[key]))]


def task_records(plan: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each task's name with what plan.json says of it, as (name, value); its λs come last."""
    found = []
    for name, record in plan.items():
        value = record.to_json()
        pairs = [pair for key in _TASK_KEYS if key in value for pair in _flat(key, value[key])]
        found.append((name, [*pairs, ("λ", ", ".join(record.lambdas))]))
    return found


def history_record(commands: Sequence[str], hardware: Sequence[str]) -> list[tuple[str, str]]:
    """Return the commands and the hardware of history.json as (name, value); runs of before it have neither."""
    return [*(("command", command) for command in commands), *(("hardware", kind) for kind in hardware)]


def command_record(each: EachRecord | None) -> list[tuple[str, str]]:
    """Return what plan.json says of a command, as (name, value); nothing where there is none."""
    if each is None:
        return []
    files = [(f"sha256 of {path}", sha256) for path, sha256 in sorted(each.files.items())]
    return [("words", " ".join(each.command)), *files, ("λ", ", ".join(each.lambdas))]


def quarantine(run: RunDir, plan: Plan) -> list[Quarantined]:
    """Count the requests that could not be scored, by task and reason; a task's most frequent reason comes first."""
    found = []
    parts = [part for name, record in plan.items() for part in record.parts(name)]
    for task, _, at_lambdas in parts:
        counts: Counter[str] = Counter()
        lambdas: dict[str, list[str]] = {}
        requests: dict[str, set[int]] = {}
        for lam in at_lambdas:
            table = run.quarantine(task, lam)
            for request, reason in zip(table["request_id"].to_pylist(), table["reason"].to_pylist(), strict=True):
                counts[reason] += 1
                requests.setdefault(reason, set()).add(request)
                if lam not in (at := lambdas.setdefault(reason, [])):
                    at.append(lam)
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            ids = sorted(requests[reason])
            found.append(Quarantined(task, reason, count, tuple(lambdas[reason]), tuple(ids[:SHOWN_IDS]), len(ids)))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _flat(f"{name} {key}", value[key])
    elif value is not None:
        yield name, str(value)
