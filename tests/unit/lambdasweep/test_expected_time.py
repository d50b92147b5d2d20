"""Tokens that are computed, and what a token costs, agree with counts by hand and with model cards."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from contract import schemas
from contract.records import TaskRecord
from contract.rundir import RunDir, commit_json, commit_table
from contract.units import Receipt, Unit
from lambdasweep.expected_time import (
    FLOPS_PER_GPU,
    Ahead,
    active_parameters,
    ahead,
    computed_share,
    computed_tokens,
)
from lambdasweep.prepare import token_counts
from merge.checkpoint import open_checkpoint
from merge.line import STRAIGHT
from merge.pair import join
from serve.engine import Prompt
from tests.support.shapes import LLAMA_8B, QWEN_30B_A3B, write_shape


def test_what_prompts_begin_with_alike_is_computed_once_in_whole_blocks() -> None:
    shared = list(range(40))
    prompts = [
        Prompt([*shared, 100], 40, []),  # all 41 are computed
        Prompt([*shared, 101], 40, []),  # 32 of 40 are read from the cache
        Prompt([*shared, 102], 20, []),  # 16 are read: rows from 20 on are wanted
        Prompt([7, *shared], 40, []),  # nothing is read: it begins otherwise
        Prompt(shared[:16], 15, []),  # nothing is read: the last row of a block is wanted
        Prompt([*shared, 103], 40, []),
    ]
    assert computed_tokens(prompts, 16) == 41 + 9 + 25 + 41 + 16 + 9
    assert computed_tokens(prompts, 64) == sum(len(prompt.token_ids) for prompt in prompts)
    assert computed_tokens([], 16) == 0


def test_letters_after_examples_cost_a_fraction_of_their_tokens() -> None:
    examples, count, letters = list(range(500)), 40, 4
    rows = [
        {"request_id": letters * document + letter, "doc_id": str(document), "choice": letter}
        | {"token_ids": [*examples, *([1000 + document] * 80), letter], "continuation_start": 580}
        | {"continuation_bytes": 1, "is_gold": letter == 0}
        for document in range(count)
        for letter in range(letters)
    ]
    table = pa.Table.from_pylist(rows, schema=schemas.REQUESTS)
    runs = ((0, 80), (80, 160))
    task: Any = SimpleNamespace(shards=runs, costs=token_counts(table, runs), built=SimpleNamespace(table=table))
    # Each of two units computes the examples once, and 84 tokens of each of its other 19 documents: 496 tokens are whole
    # blocks.
    assert computed_share(task, 16) == pytest.approx(2 * (580 + 19 * 84) / (160 * 581))


def test_what_is_scored_and_what_is_sampled_go_at_their_own_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdasweep.expected_time.active_parameters", lambda prepared: 10**9)
    monkeypatch.setattr("lambdasweep.expected_time.computed_share", lambda task, block: 0.5)
    config = SimpleNamespace(replicas=2)
    shape = LLAMA_8B | {"num_hidden_layers": 1}
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    prepared: Any = SimpleNamespace(tasks={"quiz": None}, prompts={"stories": None}, config=config)
    prepared.settings = SimpleNamespace(device="cuda", block_size=16, ranks=1)
    prepared.pair = join({"base": one, "aligned": one}, STRAIGHT)
    run = RunDir(tmp_path / "run")
    commit_json(run.sweep_json, {"pair": {}, "engine": {}, "versions": {}})
    plan = {"quiz": "choices", "stories": "samples"}
    records = {name: TaskRecord(("0", "1"), ((0, 1),), (1,), kind).to_json() for name, kind in plan.items()}
    records["sums"] = TaskRecord(("0", "1"), ((0, 1),), (1,), "answers", rescored={"0": ("0", "1")}).to_json()
    commit_json(run.plan_json, {"tasks": records})
    left = [Unit("quiz", "1", 0, 0, 1, 8000), Unit("stories", "1", 0, 0, 1, 1000)]
    flops = 2 * 10**9 / (2 * FLOPS_PER_GPU)  # seconds a token

    def commit(task: str, kind: str, computed: int) -> Ahead:
        times = 1, 0, computed, 0, 1.0, 8.0, 1.0, "replica-0", "a", "H100", "reload", ("0f",)
        receipt = Receipt(task, "0", 0, *times)
        commit_json(run.unit("receipts", *receipt.key), receipt.to_json())
        commit_table(run.unit(kind, *receipt.key), pa.table({"row": [0]}))
        return ahead(prepared, left, run)

    assert ahead(prepared, left, run).seconds == pytest.approx(5000 * flops)
    half = commit("quiz", "tokens", 2000)  # the unit took ten seconds
    assert half.tokens == 5000
    assert half.seconds == pytest.approx(4000 / (2 * 200) + 1000 * flops)
    assert half.basis.startswith(
        "scored at 200 tokens/s a replica, as in the 1 unit so far, 2 replicas; sampled 2 FLOP"
    )
    both = commit("stories", "generations", 50)
    assert both.seconds == pytest.approx(4000 / (2 * 200) + 1000 / (2 * 5))
    assert "; sampled at 5 tokens/s a replica" in both.basis
    # What is scored again goes at the speed of other such units, and not of answers or choices.
    left.append(Unit("sums@0", "1", 0, 0, 1, 3000, at="0"))
    commit("sums", "generations", 70)
    again = commit("sums@0", "rescored", 150)
    assert again.tokens == 8000
    assert again.seconds == pytest.approx(4000 / (2 * 200) + 1000 / (2 * 6) + 3000 / (2 * 15))
    assert again.basis.endswith("; scored again at 15 tokens/s a replica, as in the 1 unit so far, 2 replicas")
    only = ahead(prepared, left[:1], run)
    assert (only.seconds, only.basis) == (10, "at 200 tokens/s a replica, as in the 1 unit so far, 2 replicas")
    config_of_a_hybrid = one.config | {"mamba_d_state": 16, "model_type": "nonesuch"}
    base = replace(one, config=config_of_a_hybrid)
    prepared.pair = replace(prepared.pair, base=base, aligned_by_name={"": base})
    assert ahead(prepared, left[:1], run).tokens == 8000  # no prefix is cached


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_8B, 8.03), (QWEN_30B_A3B, 3.3)])
def test_of_experts_those_count_that_a_token_goes_to(tmp_path: Path, shape: dict[str, Any], billions: float) -> None:
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    prepared: Any = SimpleNamespace(pair=join({"base": one, "aligned": one}, STRAIGHT))
    assert active_parameters(prepared) == pytest.approx(billions * 1e9, rel=0.02)
