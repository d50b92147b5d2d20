"""Replicas go to the nodes that have room for them."""

import pytest

from contract.errors import InputError
from ray_jobs.cluster import Node
from ray_jobs.placement import NodeShare, check_room, count_placements, find_placement, occupy, ranks_on_node
from serve.settings import EngineSettings

SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, tensor_parallel=2, threads=1)


def test_room() -> None:
    nodes = {"a": Node("a", "10.0.0.1", 2, False), "b": Node("b", "10.0.0.2", 1, False)}
    check_room(nodes, SETTINGS, 3, None)
    check_room(nodes, SETTINGS, None, None)
    with pytest.raises(InputError, match="room for 3 replicas of the kind H100"):
        check_room(nodes, SETTINGS, 4, "H100")
    with pytest.raises(InputError, match="room for no replicas"):
        check_room({}, SETTINGS, None, None)


def node(name: str, stages: int) -> Node:
    return Node(name, f"10.0.0.{name}", stages, False)


def pipeline(stages: int, device: str = "cuda", tensor_parallel: int = 8) -> EngineSettings:
    return EngineSettings(device, "bfloat16", 64, tensor_parallel, stages, threads=int(device == "cpu"))


def shares(nodes: list[Node], settings: EngineSettings) -> list[list[tuple[str, int, int]]]:
    """Fill the nodes; return node, first stage and stages of each replica's shares."""
    occupied: dict[str, set[int]] = {}
    found = []
    while placement := find_placement(nodes, occupied, settings):
        occupy(placement, occupied)
        found.append([(share.node.node_id, share.first, share.stages) for share in placement])
    assert count_placements(nodes, settings) == len(found)
    return found


@pytest.mark.parametrize(
    ("rooms", "depth", "found"),
    [
        ([2, 1], 1, [[("0", 0, 1)], [("0", 1, 1)], [("1", 0, 1)]]),
        ([1, 3], 1, [[("1", 0, 1)], [("1", 1, 1)], [("0", 0, 1)], [("1", 2, 1)]]),  # the emptiest nodes come first
        ([1, 1], 2, [[("0", 0, 1), ("1", 0, 1)]]),
        ([1, 1, 1], 2, [[("0", 0, 1), ("1", 0, 1)]]),
        # A replica that fits into a node stays in it.
        ([5, 1, 1], 2, [[("0", 0, 2)], [("0", 2, 2)], [("1", 0, 1), ("2", 0, 1)]]),
        ([2, 3, 1, 1], 4, [[("1", 0, 2), ("0", 0, 2)]]),  # it takes as few nodes as will do
        ([2, 1, 1, 1], 4, [[("0", 0, 1), ("1", 0, 1), ("2", 0, 1), ("3", 0, 1)]]),
        ([2, 2, 1], 3, [[("0", 0, 1), ("1", 0, 1), ("2", 0, 1)]]),
        ([2, 2], 3, []),  # each node takes equally many
        ([0, 1], 2, []),
    ],
)
def test_where_replicas_go(rooms: list[int], depth: int, found: list[list[tuple[str, int, int]]]) -> None:
    assert shares([node(str(name), stages) for name, stages in enumerate(rooms)], pipeline(depth)) == found


def test_a_replica_that_ends_leaves_its_stages() -> None:
    nodes = [node("0", 1), node("1", 1), node("2", 2)]
    occupied = {"2": {1}, "0": {0}}
    assert find_placement(nodes, occupied, pipeline(2)) is None
    assert find_placement(nodes, {"2": {0}}, pipeline(1)) == (NodeShare(nodes[0], 0, 1),)
    assert find_placement(nodes, {"0": {0}, "1": {0}, "2": {0}}, pipeline(1)) == (NodeShare(nodes[2], 1, 1),)


def test_on_the_cpu_each_node_takes_one_rank() -> None:
    nodes = [node("0", 2), node("1", 2)]
    assert count_placements(nodes, pipeline(4)) == 1
    assert count_placements(nodes, pipeline(4, "cpu", 1)) == 0
    assert count_placements([node(str(name), 1) for name in range(4)], pipeline(4, "cpu", 1)) == 1
    assert count_placements([node(str(name), 1) for name in range(2)], pipeline(2, "cpu", 2)) == 0
    assert count_placements([node("0", 2)], pipeline(2, "cpu", 2)) == 1


def test_who_shares_a_node() -> None:
    assert ranks_on_node(NodeShare(node("0", 5), 0, 2), pipeline(2), None) == 32
    assert ranks_on_node(NodeShare(node("0", 5), 0, 2), pipeline(2), 1) == 16
    assert ranks_on_node(NodeShare(node("0", 1), 0, 1), pipeline(2), None) == 8


def test_what_is_missing_for_a_replica_over_nodes() -> None:
    nodes = {name: node(name, 1) for name in ("0", "1", "2")}
    check_room(nodes, pipeline(2), None, None)
    with pytest.raises(
        InputError, match="a replica takes 32 GPU of one node, or its equal part of each of 2 or 4 nodes"
    ):
        check_room(nodes, pipeline(4), None, None)
