"""The smallest run of each benchmark: it ends, and its last line is one JSON object with what it is about."""

import json
import sys

import pytest

from tests.support.waiting import run

# What is asserted of it holds on any machine: speed is claimed by benchmarks and never by a test.
SMALLEST = {
    "switch.py --tiny": lambda found: found["our_logprob_diff"] == 0 and found["switch_s"] > 0 and not found["cold_s"],
    "diversity.py --quick": bool,
    "coverage.py --tiny": lambda found: found["contains_value"] == 1 and 0 < found["nll_regret_ratio"] < 1,
}


@pytest.mark.parametrize("command", SMALLEST)
def test_the_smallest_run(command: str) -> None:
    script, *flags = command.split()
    done = run([sys.executable, f"benchmarks/{script}", *flags])
    assert done.returncode == 0, done.stdout + done.stderr
    assert SMALLEST[command](json.loads(done.stdout.splitlines()[-1])), done.stdout
