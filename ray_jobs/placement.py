"""Plain arithmetic finds room for replicas in a cluster: which node holds which pipeline stages of which replica."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract.errors import InputError
from ray_jobs.cluster import Node, resources_of
from serve.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class NodeShare:
    """The share of one node that a replica takes: room for some of its stages."""

    node: Node
    first: int  # the first of these stages, counted among all that the node has room for
    stages: int

    @property
    def stage_numbers(self) -> set[int]:
        return set(range(self.first, self.first + self.stages))


Placement = tuple[NodeShare, ...]  # everything that one replica takes; the engine core is on the first node
OccupiedStages = Mapping[str, set[int]]  # the stages that replicas take on each node, by the node's id


def find_placement(nodes: Iterable[Node], occupied: OccupiedStages, settings: EngineSettings) -> Placement | None:
    """Return room for one more replica, or None where there is none.

    A node that could hold a whole replica is not given a part of one, because the stages of one node need not talk over the
    network. Smaller nodes are put together, as few of them as will do. The emptiest nodes come first, so that few replicas
    spread over many nodes.
    """
    depth = settings.pipeline_parallel
    for count in _node_counts(settings):
        stages = depth // count
        found = []
        for node in nodes:
            free = set(range(node.stages)) - occupied.get(node.node_id, set())
            shares = (NodeShare(node, first, stages) for first in sorted(free))
            share = next((share for share in shares if share.stage_numbers <= free), None)
            if share and (count == 1 or node.stages < depth):
                found.append((len(free), share))
        if len(found) >= count:
            found.sort(key=lambda entry: -entry[0])
            return tuple(share for _, share in found[:count])
    return None


def _node_counts(settings: EngineSettings) -> list[int]:
    """Return the numbers of nodes that a replica can spread over, fewest first; each node has equally many stages."""
    depth = settings.pipeline_parallel
    counts = [count for count in range(1, depth + 1) if depth % count == 0]
    if settings.device == "cpu":  # on CPUs vLLM takes each rank for a node of its own
        counts = [count for count in counts if count in (1, settings.ranks)]
    return counts


def count_placements(nodes: Iterable[Node], settings: EngineSettings) -> int:
    """Return how many replicas the nodes can hold."""
    nodes = list(nodes)
    occupied: dict[str, set[int]] = {}
    count = 0
    while placement := find_placement(nodes, occupied, settings):
        occupy(placement, occupied)
        count += 1
    return count


def occupy(placement: Placement, occupied: dict[str, set[int]]) -> None:
    """Add to `occupied` the stages that a replica takes."""
    for share in placement:
        occupied.setdefault(share.node.node_id, set()).update(share.stage_numbers)


def ranks_on_node(share: NodeShare, settings: EngineSettings, replicas: int | None) -> int:
    """Return how many ranks of this replica and of others may come to share the memory of the node."""
    parts = share.node.stages // share.stages
    return min(replicas or parts, parts) * share.stages * settings.tensor_parallel


def check_room(
    nodes: Mapping[str, Node], settings: EngineSettings, replicas: int | None, accelerator: str | None
) -> None:
    """Refuse a sweep whose replicas the cluster cannot hold.

    Raises:
        InputError: the cluster has room for fewer replicas than were asked for, or for none.
    """
    room = count_placements(nodes.values(), settings)
    if room < (replicas or 1):
        ((name, each),) = resources_of(settings, settings.pipeline_parallel).items()
        kind = f" of the kind {accelerator}" if accelerator else ""
        others = ""
        if counts := _node_counts(settings)[1:]:
            numbers = " or ".join(map(str, counts))
            others = f", or its equal part of each of {numbers} nodes that have less"
        nodes_have = f"{len(nodes)} node{' has' if len(nodes) == 1 else 's have'}"
        raise InputError(
            f"a replica takes {each} {name} of one node{others}, and the Ray cluster's {nodes_have} room for {room or 'no'} "
            f"replica{'' if room == 1 else 's'}{kind}: ask for fewer replicas or ranks, or give it more"
        )
