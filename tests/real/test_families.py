"""A small random model of each kind of architecture is held against a fresh engine and against transformers."""

import json
import sys
from typing import Any

import pytest

from tests.support.waiting import run

# Each kind needs something beyond plain copies, and must take this route.
KINDS = {
    "Qwen3Moe": "experts that a kernel keeps in a layout of its own",
    "GptOss": "what the model copies by itself: experts with biases, and sinks",
    "DeepseekV3": "what attention absorbs of a projection, and a bias that router and experts share",
    "Falcon": "projections that the loader puts in another order",
    "FalconH1": "a state space's decay, which the loader computes, and no prefix cache",
    "Phi": "a bias that the model makes while it loads",
    "Llama4": "a wrapper for several modalities, whose language model has experts",
    "Mistral3+Ministral3": "a wrapper whose text config is of one of two types",
    "Qwen3VL": "a wrapper with positions of three sections",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the row of each family."""
    root = tmp_path_factory.mktemp("families")
    results = root / "results.json"
    flags = ["--tiny", "--results", str(results), "--work", str(root / "work")]
    # The benchmark forks by itself, which torch forbids in a fork whose number of threads was set.
    done = run([sys.executable, "benchmarks/families.py", *flags])
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["families"], summary["refused"], summary["wrong"]) == (len(KINDS), 0, 0), done.stdout
    return {row["family"]: row for row in json.loads(results.read_text())}


@pytest.mark.parametrize("family", KINDS)
def test_live_is_a_fresh_engine_on_the_export_and_what_transformers_says(
    rows: dict[str, dict[str, Any]], family: str
) -> None:
    row = rows[family]
    assert row["to_fresh"] == 0
    assert 0 < row["to_transformers"] <= 1e-4
    assert row["fresh_to_transformers"] <= 1e-4
    assert row["tells_apart"] > 1e-2  # if the λs gave equal numbers, any engine would pass
    assert (row["route"], row["why"]) == ("resident mmap", "")
