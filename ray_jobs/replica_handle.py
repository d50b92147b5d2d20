"""A place for a replica in the cluster: the actors that have it, what they work on, and whether they still live."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import NODE_ID_LABEL_KEY, PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contract.units import Unit
from ray_jobs import health
from ray_jobs.cluster import Node, needs, on_node
from ray_jobs.placement import Berth, Seat
from ray_jobs.replica import Follower, Replica, SweepSpec


@dataclass(slots=True, eq=False)
class Member:
    """One actor of a replica. Times are those of `time.monotonic`."""

    seat: Seat
    actor: Any
    pid: int | None = None  # known from the first heartbeat; before it the actor may be waiting for room
    _ping: Any = None  # a heartbeat that is not answered yet
    _pinged: float = 0.0

    def beat(self, now: float) -> bool:
        """Exchange heartbeats; return whether one has been answered lately.

        Raises:
            RayError: the actor is gone.
        """
        if self._ping is not None and ray.wait([self._ping], timeout=0)[0]:
            answered, self._ping = self._ping, None
            self.pid = ray.get(answered)
        if self.pid is not None and self._ping is not None and now - self._pinged > health.SILENCE_SECONDS:
            return False
        if self._ping is None and now - self._pinged > health.PING_SECONDS:
            self._ping = self.actor.ping.options(concurrency_group="health").remote()
            self._pinged = now
        return True


@dataclass(slots=True, eq=False)
class Slot:
    """One replica, from its boot to its end. Times are those of `time.monotonic`."""

    index: int
    berth: Berth
    generation: int  # of those that had this index
    members: list[Member] = field(default_factory=list)  # the first has the engine, the others run ranks of other nodes
    booting: bool = False
    unit: Unit | None = None
    splits: bool = False  # the unit comes from the splitter
    began: float = 0.0
    due: float | None = None  # when what it does counts as hung
    _group: PlacementGroup | None = None
    _starts: dict[Any, Seat] = field(default_factory=dict)  # what the actors were first asked for

    @property
    def name(self) -> str:
        return f"replica-{self.index}" + (f".{self.generation}" if self.generation > 1 else "")

    @property
    def node(self) -> Node:
        return self.berth[0].node

    @property
    def actor(self) -> Any:
        return self.members[0].actor

    def boot(self, kind: type[Replica], spec: SweepSpec, sources: dict[str, Any], ranks: list[int]) -> list[Any]:
        """Start the actors and the engine.

        Args:
            kind: of the actor that has the engine.
            spec: shared by all replicas.
            sources: by task.
            ranks: by seat, see `placement.ranks_on_node`.

        Returns:
            References: of what `start` comes to on the first seat, of `follow`, which only ever raises, on the others.
        """
        wants = [needs(spec.settings, seat.stages) for seat in self.berth]
        if len(self.berth) > 1:  # all of it or nothing; the nodes are those that the driver counted the room of
            nodes = [{NODE_ID_LABEL_KEY: seat.node.node_id} for seat in self.berth]
            self._group = placement_group(wants, strategy="STRICT_SPREAD", bundle_label_selector=nodes)
        for number, (seat, want) in enumerate(zip(self.berth, wants, strict=True)):
            actor_class = ray.remote(
                max_restarts=0,
                max_task_retries=0,
                concurrency_groups={"health": 1},  # a thread of its own, which answers while the engine computes
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number)
                if self._group
                else on_node(seat.node.node_id),
                # Ray would want a CPU too for a GPU's actor to be placed, which a bundle of GPUs has not.
                **{"num_cpus": 0} | {f"num_{name.lower()}s": amount for name, amount in want.items()},
            )
            if number == 0:
                actor = actor_class(kind).remote(self.name, spec, self.berth, sources)
            else:
                actor = actor_class(Follower).remote(spec, self.berth, number)
            self.members.append(Member(seat, actor))
        self.booting = True
        port = self.actor.meeting_port.remote() if self._group else None
        self._starts = {
            (member.actor.follow if number else member.actor.start).remote(ranks[number], port): member.seat
            for number, member in enumerate(self.members)
        }
        return list(self._starts)

    def node_of(self, reference: Any) -> Node:
        """Return the node of the actor that a reference is of."""
        return self._starts.get(reference, self.berth[0]).node

    def check(self, now: float) -> str | None:
        """Exchange heartbeats; return why the replica counts as hung, or None.

        Raises:
            RayError: the actor that has the engine is gone. Of the others it is what `follow` comes to that tells.
        """
        leader, *others = self.members
        starting = leader.pid is None
        if not leader.beat(now):
            return f"it has not answered for {health.SILENCE_SECONDS:.0f} s"
        for member in others:
            with contextlib.suppress(RayError):
                if not member.beat(now):
                    where = member.seat.node.address
                    return f"its part on {where} has not answered for {health.SILENCE_SECONDS:.0f} s"
        if starting and self.booting and leader.pid is not None:
            self.due = now + health.START_SECONDS
        if self.due is not None and now > self.due:
            if self.booting:
                return f"its engine is not up after {health.START_SECONDS:.0f} s"
            return f"the unit is not done after {now - self.began:.0f} s, far longer than others took"
        return None

    def end(self) -> None:
        """Kill all its actors."""
        for member in self.members:
            ray.kill(member.actor)
        if self._group:
            remove_placement_group(self._group)
