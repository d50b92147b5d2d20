"""A unit is the work that one replica does at a time; a receipt says that a unit is done."""

import dataclasses
from typing import Any

from contract.points import in_path

UnitKey = tuple[str, str, int]  # the task, the canonical λ and the shard, which name a unit, its table and its receipt


def rescored_name(task: str, under: str) -> str:
    """Return what the units of a task are called that score its outputs again under another λ; no task may be called so."""
    return f"{task}@{in_path(under)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """One shard of one task at one λ: the unit of work."""

    task: str
    lam: str  # the canonical point
    shard: int
    first_row: int  # the first row in the task's request table
    end_row: int  # the row after the last one
    cost: int  # the expected work, in tokens or requests, which is used for balancing only
    offenders: tuple[tuple[int, str], ...] = ()  # the rows that go straight into quarantine, and the reason of each
    at: str = ""  # the point that its engine is at, where it scores what was written at `lam`

    @property
    def key(self) -> UnitKey:
        return self.task, self.lam, self.shard

    @property
    def engine_lam(self) -> str:
        """Return the point that its engine is at."""
        return self.at or self.lam


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """A replica returns a receipt once a unit's table is committed; receipts are no part of the results."""

    task: str
    lam: str
    shard: int
    requests: int  # the unit's requests, including those that were quarantined
    quarantined: int
    tokens_scheduled: int  # the tokens that the engine computed
    tokens_cached: int  # the tokens that came from the engine's prefix cache
    switch_seconds: float  # 0 where the replica was at this λ already
    score_seconds: float
    commit_seconds: float
    replica: str
    host: str
    hardware: str
    route: str  # how λ was switched: by reload, or resident, with the tier of the parents
    weight_digests: tuple[str, ...]  # the digest of each rank's live weights
    tokens_generated: int = 0  # the tokens that were sampled, which are computed ones too
    probe_digest: str = ""  # of what the engine said of a fixed prompt when it started; empty in older receipts
    at: str = ""  # the point that the engine was at, where that is not `lam`

    @property
    def key(self) -> UnitKey:
        return self.task, self.lam, self.shard

    @property
    def engine_lam(self) -> str:
        """Return the point that its engine is at."""
        return self.at or self.lam

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as a dict that `json.dumps` takes."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Receipt":
        """Undo `to_json`.

        Raises:
            ValueError: it is no receipt, or one of another version.
        """
        try:
            return Receipt(**(value | {"weight_digests": tuple(value["weight_digests"])}))
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is no receipt: {error}") from None
