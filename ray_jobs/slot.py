"""A place for a replica on a node: the actor that has it, what it works on, and whether it still lives."""

from dataclasses import dataclass
from typing import Any

import ray

from ray_jobs import health
from ray_jobs.cluster import Node, needs, on_node
from ray_jobs.replica import Replica, SweepSpec
from ray_jobs.units import Unit


@dataclass(slots=True, eq=False)
class Slot:
    """One replica, from its boot to its end. Times are those of `time.monotonic`."""

    index: int
    node: Node
    place: int  # among the replicas of the node
    generation: int  # of those that had this index
    actor: Any = None
    booting: bool = False
    unit: Unit | None = None
    splits: bool = False  # the unit comes from the splitter
    began: float = 0.0
    due: float | None = None  # when what it does counts as hung
    pid: int | None = None  # known from the first heartbeat; before it the actor may be waiting for room
    _ping: Any = None  # a heartbeat that is not answered yet
    _pinged: float = 0.0

    @property
    def name(self) -> str:
        return f"replica-{self.index}" + (f".{self.generation}" if self.generation > 1 else "")

    def boot(self, kind: type[Replica], spec: SweepSpec, sources: dict[str, Any], ranks_on_node: int) -> Any:
        """Start the actor and its engine; return the reference of what `start` comes to."""
        actor_class = ray.remote(
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"health": 1},  # a thread of its own, which answers while the engine computes
            scheduling_strategy=on_node(self.node.node_id),
            **needs(spec.settings),
        )(kind)
        self.actor = actor_class.remote(self.name, spec, self.place, sources)
        self.booting = True
        return self.actor.start.remote(ranks_on_node)

    def check(self, now: float) -> str | None:
        """Exchange heartbeats; return why the replica counts as hung, or None.

        Raises:
            RayError: the actor is gone.
        """
        if self._ping is not None and ray.wait([self._ping], timeout=0)[0]:
            answered, self._ping = self._ping, None
            pid = ray.get(answered)
            if self.pid is None and self.booting:
                self.due = now + health.START_SECONDS
            self.pid = pid
        if self.pid is not None and self._ping is not None and now - self._pinged > health.SILENCE_SECONDS:
            return f"it has not answered for {health.SILENCE_SECONDS:.0f} s"
        if self.due is not None and now > self.due:
            if self.booting:
                return f"its engine is not up after {health.START_SECONDS:.0f} s"
            return f"the unit is not done after {now - self.began:.0f} s, far longer than others took"
        if self._ping is None and now - self._pinged > health.PING_SECONDS:
            self._ping = self.actor.ping.options(concurrency_group="health").remote()
            self._pinged = now
        return None
