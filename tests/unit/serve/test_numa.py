"""A rank is bound to the processors of its GPU: the description of the machine is made up, its processors are real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.numa import bind_to_node, read_processors

GPU = "0000:17:00.0"
ALLOWED = sorted(os.sched_getaffinity(0))


def describe(root: Path, nodes: dict[int, str], of_gpu: str | None) -> Path:
    """Write what Linux says of a machine whose NUMA nodes have these processors."""
    for node, processors in nodes.items():
        folder = root / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{processors}\n")
    gpu = root / "bus/pci/devices" / GPU
    gpu.mkdir(parents=True)
    if of_gpu is not None:
        (gpu / "numa_node").write_text(f"{of_gpu}\n")
    return root


@pytest.mark.parametrize(
    ("text", "processors"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("7", {7}), ("\n", set()), ("0-1,64-65", {0, 1, 64, 65})]
)
def test_a_list_of_processors(text: str, processors: set[int]) -> None:
    assert read_processors(text) == processors


def bound(system: Path, threads: bool = False) -> tuple[str, list[set[int]]]:
    """Bind a process of its own; return what it says, and the processors that its threads may run on afterwards."""
    code = f"""
import json, os, threading
from pathlib import Path
from serve.numa import bind_to_node
done, bound, told = threading.Event(), [threading.Event(), threading.Event()], []
def wait(number, processors):
    if processors:
        os.sched_setaffinity(0, processors)
    bound[number].set()
    done.wait()
    told.append((number, sorted(os.sched_getaffinity(0))))
threads = [threading.Thread(target=wait, args=pair) for pair in [(0, None), (1, {{{ALLOWED[-1]}}})]] if {threads} else []
for thread in threads:
    thread.start()
for event in bound[:len(threads)]:
    event.wait()
print(bind_to_node({GPU!r}, Path({str(system)!r})))
done.set()
for thread in threads:
    thread.join()
late = []
after = threading.Thread(target=lambda: late.append(sorted(os.sched_getaffinity(0))))
after.start()
after.join()
print(json.dumps([sorted(os.sched_getaffinity(0)), *late, *(processors for _, processors in sorted(told))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, processors = done.stdout.splitlines()
    return said, [set(each) for each in json.loads(processors)]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor is the same bound and free")
def test_a_rank_runs_beside_its_gpu(tmp_path: Path) -> None:
    """So do the threads that it has and will have; one that was bound before stays where it is."""
    first, *others = ALLOWED
    system = describe(tmp_path, {0: ",".join(map(str, others)), 1: f"{first},{ALLOWED[-1] + 1000}"}, "1")
    said, processors = bound(system, threads=True)
    assert said == "this rank is bound to 1 processors of NUMA node 1, where its GPU is"
    assert processors == [{first}, {first}, {first}, {ALLOWED[-1]}]


@pytest.mark.parametrize(
    ("nodes", "of_gpu", "why"),
    [
        ({0: "0-999"}, "0", "the machine has one NUMA node"),
        ({0: "0-999", 1: ""}, "0", "the machine has one NUMA node"),  # the other one is a GPU's memory
        ({}, "0", "the machine has one NUMA node"),
        ({0: "0-499", 1: "500-999"}, "-1", "says -1, which is no NUMA node with processors"),
        ({0: "0-499", 1: "500-999"}, None, "the NUMA node of its GPU is not known"),
        ({0: "0-499", 1: "100000-100003"}, "1", "it may use none of those of NUMA node 1"),
    ],
)
def test_a_rank_that_cannot_be_bound_stays_free(
    tmp_path: Path, nodes: dict[int, str], of_gpu: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("it is bound"))
    said = bind_to_node(GPU, describe(tmp_path, nodes, of_gpu))
    assert said.startswith("this rank is not bound to processors: ")
    assert why in said


def test_a_system_that_forbids_it_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbid)
    said = bind_to_node(GPU, describe(tmp_path, {0: "0-999", 1: "1000"}, "0"))
    assert said == ("this rank is not bound to processors: the system forbids it ([Errno 1] Operation not permitted)")


@pytest.mark.parametrize(("is_vllms", "asked"), [(False, [GPU]), (True, [])])
def test_a_rank_of_a_gpu_is_bound_unless_vllm_does_it(
    is_vllms: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its part of the cores for the start, counted before it is bound to fewer."""
    pytest.importorskip("vllm")
    from serve.switch import backend

    addresses: list[str] = []
    cores = list(range(64))

    def bind(address: str) -> str:
        addresses.append(address)
        del cores[32:]
        return "bound"

    gpu = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x17, pci_device_id=0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: gpu)
    monkeypatch.setattr(backend, "bind_to_node", bind)
    monkeypatch.setattr(backend, "available_cores", lambda: cores)
    config: Any = SimpleNamespace(parallel_config=SimpleNamespace(numa_bind=is_vllms))
    assert backend._settle(torch.device("cuda", 0), config, 8) == 8
    assert addresses == asked
    assert backend._settle(torch.device("cpu"), config, 8) is None
    assert addresses == asked
