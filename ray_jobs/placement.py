"""Plain arithmetic finds room for replicas in a cluster: which node holds which pipeline stages of which replica."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract.errors import InputError
from ray_jobs.cluster import Node, needs
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Seat:
    """Room for some stages of a replica on one node."""

    node: Node
    first: int  # the first of these stages, counted among all that the node has room for
    stages: int

    @property
    def places(self) -> set[int]:
        return set(range(self.first, self.first + self.stages))


Berth = tuple[Seat, ...]  # everything that one replica takes; the engine core is on the first node
Taken = Mapping[str, set[int]]  # the stages that replicas take on each node, by the node's id


def free_berth(nodes: Iterable[Node], taken: Taken, settings: EngineSettings) -> Berth | None:
    """Return room for one more replica, or None where there is none.

    A node that could hold a whole replica is not given a part of one, because the stages of one node need not talk over the
    network. Smaller nodes are put together, as few of them as will do. The emptiest nodes come first, so that few replicas
    spread over many nodes.
    """
    depth = settings.pipeline_parallel
    for count in _spans(settings):
        stages = depth // count
        found = []
        for node in nodes:
            free = set(range(node.stages)) - taken.get(node.node_id, set())
            seats = (Seat(node, first, stages) for first in sorted(free))
            seat = next((seat for seat in seats if seat.places <= free), None)
            if seat and (count == 1 or node.stages < depth):
                found.append((len(free), seat))
        if len(found) >= count:
            found.sort(key=lambda entry: -entry[0])
            return tuple(seat for _, seat in found[:count])
    return None


def _spans(settings: EngineSettings) -> list[int]:
    """Return the numbers of nodes that a replica can spread over, fewest first; each node has equally many stages."""
    depth = settings.pipeline_parallel
    counts = [count for count in range(1, depth + 1) if depth % count == 0]
    if settings.device == "cpu":  # on CPUs vLLM takes each rank for a node of its own
        counts = [count for count in counts if count in (1, settings.ranks)]
    return counts


def count_berths(nodes: Iterable[Node], settings: EngineSettings) -> int:
    """Return how many replicas the nodes can hold."""
    nodes = list(nodes)
    taken: dict[str, set[int]] = {}
    count = 0
    while berth := free_berth(nodes, taken, settings):
        take(berth, taken)
        count += 1
    return count


def take(berth: Berth, taken: dict[str, set[int]]) -> None:
    """Add to `taken` the stages that a replica takes."""
    for seat in berth:
        taken.setdefault(seat.node.node_id, set()).update(seat.places)


def ranks_on_node(seat: Seat, settings: EngineSettings, replicas: int | None) -> int:
    """Return how many ranks of this replica and of others may come to share the memory of the node."""
    parts = seat.node.stages // seat.stages
    return min(replicas or parts, parts) * seat.stages * settings.tensor_parallel


def check_room(
    nodes: Mapping[str, Node], settings: EngineSettings, replicas: int | None, accelerator: str | None
) -> None:
    """Refuse a sweep whose replicas the cluster cannot hold.

    Raises:
        InputError: the cluster has room for fewer replicas than were asked for, or for none.
    """
    room = count_berths(nodes.values(), settings)
    if room < (replicas or 1):
        ((name, each),) = needs(settings, settings.pipeline_parallel).items()
        kind = f" of the kind {accelerator}" if accelerator else ""
        others = ""
        if spans := _spans(settings)[1:]:
            numbers = " or ".join(map(str, spans))
            others = f", or its equal part of each of {numbers} nodes that have less"
        raise InputError(
            f"a replica takes {each} {name} of one node{others}, and the {len(nodes)} nodes of the Ray cluster have room "
            f"for {room} replicas{kind}: ask for fewer replicas or ranks, or give it more"
        )
