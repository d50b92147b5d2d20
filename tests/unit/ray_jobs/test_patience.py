"""A node whose replica ended waits for its memory. The driver is tried without Ray and with a clock of its own."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.errors import SweepError
from contract.events import Listener
from contract.units import Unit
from merge.remote_parent import RemoteParent
from ray_jobs import driver
from ray_jobs.cluster import Node
from ray_jobs.patience import FIRST_SECONDS, RECENT_SECONDS, TRIES, Patience
from ray_jobs.replica import Started, SweepSpec
from ray_jobs.replica_handle import ReplicaHandle
from serve.last_words import lacks_memory, last_error, telling_lines
from serve.settings import EngineSettings
from serve.start import process_environment

# vLLM 0.32 says this.
NO_MEMORY = (
    "EngineError: the vLLM engine did not start: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than "
    "desired GPU memory utilization (0.92, 72.86 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
    "processes."
)


def test_a_node_waits_longer_each_time_and_not_for_ever() -> None:
    patience = Patience()
    patience.ended("a", 100.0)
    now, waits = 101.0, []
    while (seconds := patience.wait("a", NO_MEMORY, now, now + 1)) is not None:
        waits.append(seconds)
        now += 1
        assert patience.waits("a", now + seconds - 0.1)
        assert not patience.waits("b", now)
        assert not patience.waits("a", now + seconds)
        now += seconds
    assert waits == [FIRST_SECONDS * 2**turn for turn in range(TRIES)]


def test_replicas_that_fail_at_about_the_same_time_are_one_try() -> None:
    patience = Patience()
    patience.ended("a", 0.0)
    for wave in range(TRIES):
        began = 100.0 * wave + 1
        long = FIRST_SECONDS * 2**wave
        waits = [patience.wait("a", NO_MEMORY, began, began + late) for late in (0.0, 0.25, 0.5, long + 1)]
        assert waits == [long, long - 0.25, long - 0.5, 0]
        assert patience.waits("a", began + long - 0.1)
        assert not patience.waits("a", began + long)
    assert patience.wait("a", NO_MEMORY, 1000, 1001) is None


# An engine of two ranks ends its log like this, in the words of vLLM 0.32.
OF_RANKS = [
    "(Worker_TP1 pid=8) ERROR 11-28 02:00:00 [multiproc_executor.py:900] WorkerProc failed to start.",
    "(Worker_TP1 pid=8) ERROR 11-28 02:00:00 [multiproc_executor.py:900] ValueError: Free memory on device cuda:1 (3.1/79.2 "
    "GiB) on startup is less than desired GPU memory utilization (0.92, 72.86 GiB).",
    *[f'  File "engine.py", line {line}, in start' for line in range(40)],
    "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root "
    "cause.",
]


def test_what_a_rank_says_of_memory_is_among_the_last_words() -> None:
    words = telling_lines(OF_RANKS, 20)
    assert len(words) == 20
    assert words[1:] == OF_RANKS[-19:]
    assert lacks_memory("".join(words))
    assert lacks_memory(last_error(OF_RANKS))
    others = ["WARNING: to avoid running out of memory, give less", *OF_RANKS[2:]]  # this line is no error
    assert telling_lines(others, 20) == others[-20:]
    assert last_error(others) == others[-1]
    assert last_error(["no words"]) == "no words"
    assert telling_lines(OF_RANKS[:2], 20) == OF_RANKS[:2]


def test_an_error_without_words_is_told_with_the_code_that_raised_it() -> None:
    """vLLM 0.32 ends so on a DeepSeek whose config has no n_group."""
    told = [
        "(MainProcess pid=9) WARNING 11-28 08:27:27 [base.py:380] ValueError: Tokenizer not available when "
        "`skip_tokenizer_init=True`",
        '[rank0]:   File "cpu_router.py", line 212, in _compute_routing',
        "[rank0]:     assert self.topk_group is not None",
        "[rank0]:            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        "[rank0]: AssertionError",
        "[rank0]:[W1128] Warning: destroy_process_group() was not called",
    ]
    assert last_error(told) == "AssertionError: assert self.topk_group is not None"
    told[3] = "[rank0]:            ~~~~~~~~~~~~~~^~~~~~~~~~~~~~~~"  # Python 3.11 underlines operators so
    assert last_error(told) == "AssertionError: assert self.topk_group is not None"
    assert last_error(told[:1]) == told[0]
    assert last_error(["RuntimeError: no kernel", told[0]]) == "RuntimeError: no kernel"  # vLLM went on after a warning


def test_ranks_log_where_the_last_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = pytest.importorskip("vllm.envs")
    settings = EngineSettings(device="cuda", dtype="bfloat16", max_model_len=64, tensor_parallel=2)
    for name, value in process_environment(settings, []).items():
        monkeypatch.setenv(name, value)
    assert envs.environment_variables["VLLM_LOGGING_STREAM"]() == "ext://sys.stderr"


def test_a_start_ends_a_series() -> None:
    patience = Patience()
    patience.ended("a", 0.0)
    assert [patience.wait("a", NO_MEMORY, 1, 2), patience.wait("a", NO_MEMORY, 4, 5)] == [2, 4]
    patience.started("a")
    patience.ended("a", 50.0)
    assert patience.wait("a", NO_MEMORY, 51, 52) == 2


@pytest.mark.parametrize(
    ("reason", "began", "waits"),
    [
        (NO_MEMORY, 10.0, True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", 10.0, True),
        (
            "AssertionError: Error in memory profiling. Initial free memory 3 GiB, current free memory 70 GiB.",
            10.0,
            True,
        ),
        ("ValueError: the model is not supported", 10.0, False),
        (NO_MEMORY, RECENT_SECONDS + 1, False),  # the replica ended long ago, and others hold the memory
    ],
)
def test_only_a_lack_of_memory_after_an_end_is_waited_for(reason: str, began: float, waits: bool) -> None:
    patience = Patience()
    assert patience.wait("a", reason, began, began + 1) is None  # nothing has ended here
    patience.ended("a", 0.0)
    assert (patience.wait("a", reason, began, began + 1) is not None) is waits


class News(Listener):
    """This listener keeps what the driver tells."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.lost: list[bool] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def replica_lost(self, replica: str, failed: bool, given_up: Unit | None) -> None:
        self.lost.append(failed)


class World:
    """This is a driver over nodes of one GPU each, whose replicas exist by name only."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        probes: dict[str, tuple[str, str]] | None = None,
        names: str = "n",
        stages: int = 1,
    ) -> None:
        self.now = 1000.0
        self.booted: list[ReplicaHandle] = []
        self.nodes = {name: Node(name, f"10.0.0.{name}", 1, draining=False) for name in names}
        settings = EngineSettings(device="cuda", dtype="bfloat16", max_model_len=64, pipeline_parallel=stages)
        parent = RemoteParent.__new__(RemoteParent)
        spec = SweepSpec(
            str(Path("run")), base=parent, aligned=None, settings=settings, identity={}, probes=probes or {}
        )
        monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=lambda _: None))
        monkeypatch.setattr(driver, "living_nodes", lambda *_: dict(self.nodes))
        monkeypatch.setattr(driver, "end_process", lambda *_: None)
        monkeypatch.setattr(ReplicaHandle, "boot", lambda handle, *_: self._boot(handle))
        monkeypatch.setattr(ReplicaHandle, "end", lambda handle: None)
        self.news = News()
        self.driver = driver._Driver(spec, [Unit("t", "0", 0, 0, 1, 1)], {}, None, self.news)

    def _boot(self, handle: ReplicaHandle) -> list[Any]:
        handle.booting = True
        self.booted.append(handle)
        return []

    def look(self) -> int:
        """Let the driver look at its nodes; return how many replicas it has booted so far."""
        self.driver._look()
        return len(self.booted)

    def fails(self, reason: str) -> None:
        self.driver._failed(self.booted[-1], reason)


def test_the_driver_waits_and_does_not_blame_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert world.look() == 1
    world.booted[-1].booting = False  # it scores
    world.fails("it was killed")
    booted = world.look()
    for turn in range(driver.MAX_BOOT_FAILURES + 1):  # it happens more often than a node may fail
        world.fails(NO_MEMORY)
        assert world.news.messages[-1].endswith(f"another one is started in {2 ** (turn + 1)} s")
        assert world.look() == booted
        world.now += 2 ** (turn + 1)
        booted += 1
        assert world.look() == booted
    assert world.news.lost == [True] + [False] * (driver.MAX_BOOT_FAILURES + 1)


def test_a_replica_that_says_other_numbers_than_the_run_so_far_stops_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"H100": ("replica-0 on a", "11")})
    world.look()
    world.driver._started(world.booted[0], Started("H100", "H100", "", "11", "b"))
    with pytest.raises(SweepError, match="replica-0 on a and replica-0 on b"):
        world.driver._started(world.booted[0], Started("H100", "H100", "", "12", "b"))
    mixed = "H100 + H200"  # the engine has four ranks
    world.driver._started(world.booted[0], Started(mixed, "H100 + H100 + H200 + H200", "", "21", "b"))
    world.driver._started(world.booted[0], Started(mixed, "H200 + H200 + H100 + H100", "", "22", "b"))


def test_the_driver_gives_up_a_node_whose_memory_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.look()
    world.fails(NO_MEMORY)
    world.now += 0.1
    world.look()
    world.fails(NO_MEMORY)
    assert len(world.booted) == 2
    with pytest.raises(SweepError, match="no replica starts"):
        world.look()


def test_the_other_nodes_of_a_replica_that_is_moved_wait_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, names="ab", stages=2)
    world.look()
    (moved,) = world.booted
    moved.booting = False
    world.nodes |= {"b": replace(world.nodes["b"], draining=True), "c": Node("c", "10.0.0.c", 1, draining=False)}
    world.look()
    world.driver._hand_out(moved)
    assert world.look() == 2
    assert {share.node.node_id for share in world.booted[-1].placement} == {"a", "c"}
    assert world.booted[-1].node.node_id == "a"
    world.fails(NO_MEMORY)
    assert world.news.messages[-1].endswith("is not free yet: another one is started in 2 s")
    assert world.news.lost == [False, False]
