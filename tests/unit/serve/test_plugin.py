"""Processes of an engine end with the process that owns it, even if that is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from serve.plugin import END_WITH_PARENT
from tests.support.paths import ROOT
from tests.support.waiting import until

OWNER = """
import multiprocessing, time
from serve.plugin import _die_with_parent

def engine():
    _die_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=engine).start()
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["VLLM_ENABLE_V1_MULTIPROCESSING=0", f"{END_WITH_PARENT}=1"])
def test_an_engine_ends_with_a_server_or_a_replica_that_is_killed(variable: str) -> None:
    name, _, value = variable.partition("=")
    environment = os.environ | {name: value}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    engine = psutil.Process(int(owner.stdout.readline()))
    assert engine.is_running()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    until(lambda: not engine.is_running(), 30)
