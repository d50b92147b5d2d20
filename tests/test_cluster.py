"""What a cluster has room for."""

import pytest

from lambdasweep.errors import InputError
from ray_jobs.cluster import Node, check_room
from serve.settings import EngineSettings

SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, tensor_parallel=2, threads=1)


def test_room() -> None:
    nodes = {"a": Node("a", "10.0.0.1", 2, False), "b": Node("b", "10.0.0.2", 1, False)}
    check_room(nodes, SETTINGS, 3, None)
    check_room(nodes, SETTINGS, None, None)
    with pytest.raises(InputError, match="room for 3 replicas of the kind H100"):
        check_room(nodes, SETTINGS, 4, "H100")
    with pytest.raises(InputError, match="room for 0"):
        check_room({}, SETTINGS, None, None)
