"""The smallest run of each benchmark ends, and its last line is one JSON object with what it is about."""

import json
from pathlib import Path

import pytest

from tests.support.waiting import run
from tests.support.warm_python import warm_python

# These assertions hold on any machine. Speed is claimed by benchmarks, and never by a test.
SMALLEST = {
    "switch.py --tiny": lambda found: found["our_logprob_diff"] == 0 and found["switch_s"] > 0 and not found["cold_s"],
    "diversity.py --quick": lambda found: found["max_rel_diff"] < 1e-6,
    "interval_coverage.py --tiny": lambda found: found["contains_value"] == 1 and 0 < found["nll_regret_ratio"] < 1,
    "export.py --tiny": lambda found: 0 < found["max_ulp"] < 0.501,
    "report.py --tiny": lambda found: (found["requests"], found["resamples"]) == (720, 2000),
    "real_pair.py --tiny --out OUT": lambda found: found["trained_on"] > 0 and found["held_out"] > 0,
    "parity.py --tiny": lambda found: 0 < found["max_rel_diff"] < 1e-4 and found["acc_mismatches"] == 0,
    "scoring.py --tiny": lambda found: found["token_ratio"] >= 1 and 0 < found["max_rel_diff"] < 1e-4,
    "per_prompt.py --tiny": lambda found: found["ours_4_ms"] > 0 and found["vllm_32_ms"] > 0,
    "batch.py --tiny": lambda found: 0 < found["max_rel_diff"] < 1e-4,
    "sweep.py --tiny": lambda found: (
        len(found["letters_acc"]) == 11 and all(0 <= share <= 1 for share in found["letters_acc"].values())
    ),
    "generate.py --tiny": lambda found: found["logprob_overhead"] > 0 and found["throughput_ratio"] > 0,
    "answers_parity.py --tiny": lambda found: (
        (found["outputs"], found["metrics"]) == (18, 7)
        and found["output_mismatches"] == found["metric_mismatches"] == 0
    ),
    "gpu.py --tiny --only bits": lambda found: found["findings"] > 0 and found["failed"] == 0,
}


@pytest.mark.parametrize("command", SMALLEST)
def test_the_smallest_run(command: str, tmp_path: Path) -> None:
    script, *flags = command.replace("OUT", str(tmp_path / "out")).split()
    done = run([warm_python(), f"benchmarks/{script}", *flags])
    assert done.returncode == 0, done.stdout + done.stderr
    assert SMALLEST[command](json.loads(done.stdout.splitlines()[-1])), done.stdout
