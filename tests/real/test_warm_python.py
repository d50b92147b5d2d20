"""The warm Python of the other tests does what Python itself does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.waiting import until
from tests.support.warm_python import descendants, warm_python

TELLS = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["SAYS"], sys.path[0], __name__, sys.stdin.read()]))
print("oh", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""

WAITS = """
import os, signal, sys, time
def end(number, frame):
    print("told", number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
print(os.getpid(), flush=True)
time.sleep(600)
"""

SPAWNS = """
import multiprocessing, os, sys
def tell(line):
    line.send(("vllm" in sys.modules, multiprocessing.parent_process().pid))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=tell, args=(theirs,))
    child.start()
    imported, parent = ours.recv()
    child.join()
    print(imported, parent == os.getpid(), child.exitcode)
"""

THREADS = """
import torch
from serve.start import process_environment
from tests.support.engine_process import settings
torch.set_num_threads(2)
process_environment(settings(), [0])
print(torch.get_num_threads())
"""


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    (tmp_path / "script.py").write_text(request.param)
    return str(tmp_path / "script.py")


@pytest.mark.parametrize("script", [TELLS], indirect=True)
def test_it_tells_the_same(script: str, tmp_path: Path) -> None:
    ends = []
    for python in (sys.executable, warm_python()):
        options = {"cwd": tmp_path, "env": os.environ | {"SAYS": "λ"}, "input": "in", "text": True}
        done = subprocess.run([python, script, "3", "a b"], capture_output=True, check=False, **options)
        ends.append((done.returncode, done.stdout, done.stderr))
    assert ends[0] == ends[1]
    assert ends[0][0] == 3


@pytest.mark.parametrize("script", [WAITS], indirect=True)
def test_a_signal_reaches_the_fork_and_its_end_is_told(script: str) -> None:
    process = subprocess.Popen([warm_python(), script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert [one.pid for one in descendants(process.pid)] == [pid]
    process.terminate()
    assert process.stdout.read() == f"told {signal.SIGTERM.value}\n"
    assert process.wait() == 5


@pytest.mark.parametrize("script", [WAITS], indirect=True)
@pytest.mark.parametrize("which", ["the executable", "the fork"])
def test_both_are_killed_with_either(script: str, which: str) -> None:
    process = subprocess.Popen([warm_python(), script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(process.pid if which == "the executable" else pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("script", [SPAWNS], indirect=True)
def test_what_it_spawns_is_a_fork_as_well(script: str) -> None:
    done = subprocess.run([warm_python(), script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True 0\n"


@pytest.mark.parametrize("script", [THREADS], indirect=True)
def test_a_replica_computes_in_as_many_threads_as_it_is_given(script: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([warm_python(), script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--unknown"]])
def test_a_process_of_ray_tells_the_same(arguments: list[str], tmp_path: Path) -> None:
    import ray

    script = Path(ray.__file__).parent / "_private/log_monitor.py"
    ends = []
    for python in (sys.executable, warm_python()):
        command = [python, "-B", "-u", str(script), *arguments]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        ends.append((done.returncode, done.stdout, done.stderr))
    assert ends[0] == ends[1]
    assert ends[0][0] == (0 if arguments == ["--help"] else 2)
