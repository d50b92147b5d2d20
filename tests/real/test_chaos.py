"""In the short run of benchmarks/chaos.py a replica, one of its ranks, a node and the driver are killed during a sweep."""

import json

from tests.support.waiting import run
from tests.support.warm_python import warm_python


def test_kills_of_every_kind_change_no_byte() -> None:
    command = [warm_python(), "benchmarks/chaos.py", "--quick"]
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["by_kind"] == {"driver": 1, "node": 1, "rank": 1, "replica": 1}
    assert (found["lost"], found["duplicated"], found["bytes_identical"]) == (0, 0, True)
    assert found["units"] == 11
