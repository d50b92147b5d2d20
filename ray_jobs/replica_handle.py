"""The driver holds a handle of each replica: its actors, the unit they work on, and whether they still live."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import NODE_ID_LABEL_KEY, PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from contract.units import Unit
from ray_jobs import health
from ray_jobs.cluster import Node, on_node, resources_of
from ray_jobs.placement import NodeShare, Placement
from ray_jobs.replica import Follower, Replica, SweepSpec


@dataclass(slots=True, eq=False)
class Member:
    """One actor of a replica. Times are those of `time.monotonic`."""

    share: NodeShare
    actor: Any
    pid: int | None = None  # the process's id from the first heartbeat on; before it the actor may be waiting for room
    _ping: Any = None  # the heartbeat that is not answered yet, if any
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
class ReplicaHandle:
    """One replica, from its boot to its end. Times are those of `time.monotonic`."""

    index: int
    placement: Placement
    generation: int  # counts the replicas that have had this index, from 1
    members: list[Member] = field(default_factory=list)  # the first has the engine, the others run ranks of other nodes
    booting: bool = False
    unit: Unit | None = None
    splits: bool = False  # whether the unit comes from the splitter
    began: float = 0.0
    due: float | None = None  # the time after which the replica counts as hung
    _group: PlacementGroup | None = None
    _starts: dict[Any, NodeShare] = field(default_factory=dict)  # where the actor of each first call is

    @property
    def name(self) -> str:
        return f"replica-{self.index}" + (f".{self.generation}" if self.generation > 1 else "")

    @property
    def node(self) -> Node:
        return self.placement[0].node

    @property
    def actor(self) -> Any:
        return self.members[0].actor

    def boot(self, kind: type[Replica], spec: SweepSpec, sources: dict[str, Any], ranks: list[int]) -> list[Any]:
        """Start the actors and the engine.

        Args:
            kind: the class of the actor that has the engine.
            spec: what every replica of the sweep needs to know.
            sources: the reference of each task's source, by the task's name.
            ranks: what `placement.ranks_on_node` gives for each part of the placement.

        Returns:
            The references of the actors' first calls: of `start` on the first node, and on the others of `follow`, which
            never returns and may raise.
        """
        wants = [resources_of(spec.settings, share.stages) for share in self.placement]
        if len(self.placement) > 1:  # the group gets all of its nodes or none: those where the driver counted room
            nodes = [{NODE_ID_LABEL_KEY: share.node.node_id} for share in self.placement]
            self._group = placement_group(wants, strategy="STRICT_SPREAD", bundle_label_selector=nodes)
        for number, (share, want) in enumerate(zip(self.placement, wants, strict=True)):
            actor_class = ray.remote(
                max_restarts=0,
                max_task_retries=0,
                concurrency_groups={"health": 1},  # heartbeats have a thread, which answers while the engine computes
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, number)
                if self._group
                else on_node(share.node.node_id),
                # By default Ray places a GPU's actor only where there is a CPU too, which a bundle of GPUs lacks.
                **{"num_cpus": 0} | {f"num_{name.lower()}s": amount for name, amount in want.items()},
            )
            if number == 0:
                actor = actor_class(kind).remote(self.name, spec, self.placement, sources)
            else:
                actor = actor_class(Follower).remote(spec, self.placement, number)
            self.members.append(Member(share, actor))
        self.booting = True
        port = self.actor.meeting_port.remote() if self._group else None
        self._starts = {
            (member.actor.follow if number else member.actor.start).remote(ranks[number], port): member.share
            for number, member in enumerate(self.members)
        }
        return list(self._starts)

    def node_of(self, reference: Any) -> Node:
        """Return the node of the actor whose call has this reference."""
        return self._starts.get(reference, self.placement[0]).node

    def check(self, now: float) -> str | None:
        """Exchange heartbeats; return why the replica counts as hung, or None.

        Raises:
            RayError: the actor that has the engine is gone. The loss of another actor shows in the result of its `follow`.
        """
        leader, *others = self.members
        starting = leader.pid is None
        if not leader.beat(now):
            return f"it has not answered for {health.SILENCE_SECONDS:.0f} s"
        for member in others:
            with contextlib.suppress(RayError):
                if not member.beat(now):
                    where = member.share.node.address
                    return f"its part on {where} has not answered for {health.SILENCE_SECONDS:.0f} s"
        if starting and self.booting and leader.pid is not None:
            self.due = now + health.START_SECONDS
        if self.due is not None and now > self.due:
            if self.booting:
                return f"its engine is not up after {health.START_SECONDS:.0f} s"
            return f"the unit is not done after {now - self.began:.0f} s, far longer than others took"
        return None

    def end(self) -> None:
        """Kill all actors of the replica and free their room."""
        for member in self.members:
            ray.kill(member.actor)
        if self._group:
            remove_placement_group(self._group)
