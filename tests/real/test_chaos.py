"""The short run of benchmarks/chaos.py: a replica, one of its ranks, a node and the driver are killed during a sweep."""

import json
import subprocess
import sys

from tests.support.paths import ROOT


def test_kills_of_every_kind_change_no_byte() -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["by_kind"] == {"driver": 1, "node": 1, "rank": 1, "replica": 1}
    assert (found["lost"], found["duplicated"], found["bytes_identical"]) == (0, 0, True)
    assert found["units"] == 11
