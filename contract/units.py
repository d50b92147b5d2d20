"""A unit of work, and the receipt that says it is done."""

import dataclasses
from typing import Any

Key = tuple[str, str, int]  # task, canonical λ, shard: names a unit, its table and its receipt


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """One shard of one task at one λ: the unit of work."""

    task: str
    lam: str  # canonical point
    shard: int
    first_row: int  # of the task's request table
    end_row: int  # exclusive
    cost: int  # tokens or requests: an estimate of the work, used for balancing only
    offenders: tuple[tuple[int, str], ...] = ()  # rows that go straight into quarantine, and why

    @property
    def key(self) -> Key:
        return self.task, self.lam, self.shard


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What a replica returns once a unit's table is committed; no part of the results."""

    task: str
    lam: str
    shard: int
    requests: int  # of the unit, the quarantined ones included
    quarantined: int
    tokens_scheduled: int  # computed by the engine
    tokens_cached: int  # taken from its prefix cache
    switch_seconds: float  # 0 where the replica was at this λ already
    score_seconds: float
    commit_seconds: float
    replica: str
    host: str
    hardware: str
    route: str  # how λ was switched: reload, or resident and the tier of the parents
    weight_digests: tuple[str, ...]  # of the live weights, one per rank
    tokens_generated: int = 0  # of those computed, the sampled ones

    @property
    def key(self) -> Key:
        return self.task, self.lam, self.shard

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
