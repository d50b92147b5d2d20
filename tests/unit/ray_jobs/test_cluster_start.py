"""A start of Ray that fails is told and tried again, and a signal ends the waits. A stub stands for Ray."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray

from contract.errors import InputError, SweepError
from ray_jobs import cluster as module
from ray_jobs.cluster import cluster
from serve.settings import EngineSettings

SETTINGS = EngineSettings(device="cpu", dtype="float32", max_model_len=64, threads=1)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[dict[str, Any]]]:
    """Let Ray fail so often; return what it was started with each time."""

    def fail(count: int) -> list[dict[str, Any]]:
        given: list[dict[str, Any]] = []

        def init(**arguments: Any) -> None:
            given.append(arguments)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray leaves a signal handler behind
            if len(given) <= count:
                raise Exception("The current node timed out during startup.\nRead the logs")

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(module, "_WAITS", (0.01, 0.02, 0.03))
        return given

    return fail


def test_a_start_that_fails_is_tried_again(tries: Callable[[int], list[dict[str, Any]]]) -> None:
    given, said = tries(2), list[str]()
    before = signal.getsignal(signal.SIGTERM)
    with cluster(None, SETTINGS, 3, said.append):
        assert signal.getsignal(signal.SIGTERM) == before
    assert len(given) == 3
    assert given[0] == given[2]
    assert given[0]["num_cpus"] >= 3
    assert len(said) == 2
    assert said[0].startswith(
        "Ray did not start, perhaps because this machine is busy (The current node timed out during startup.); it is tried "
        "again in "
    )


def test_a_start_that_always_fails_is_given_up(tries: Callable[[int], list[dict[str, Any]]]) -> None:
    tries(100)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        SweepError, match="Ray did not start on this machine in 4 tries: try again when it is less busy"
    ):
        cluster(None, SETTINGS, None).__enter__()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cluster_that_cannot_be_reached_is_not_tried_again(
    tries: Callable[[int], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tries(100)
    monkeypatch.setattr(module, "check_address", lambda address: None)
    with pytest.raises(InputError, match="no Ray cluster can be reached at head:6379: check --address"):
        cluster("head:6379", SETTINGS, None).__enter__()
    assert len(given) == 1


def test_a_signal_ends_the_waits(tries: Callable[[int], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    given, stop = tries(100), threading.Event()
    monkeypatch.setattr(module, "_WAITS", (600.0, 600.0))
    with cluster(None, SETTINGS, None, lambda _: stop.set(), stop):
        assert len(given) == 1
