"""Tokens that are computed, and what a token costs, agree with counts by hand and with model cards."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.records import TaskRecord, read_begun
from contract.rundir import RunDir
from contract.units import Receipt, Unit
from lambdasweep.expected_time import (
    FLOPS_PER_GPU,
    Ahead,
    active_parameters,
    ahead,
    computed_share,
    computed_tokens,
    written_share,
)
from lambdasweep.prepare import token_counts
from merge.checkpoint import open_checkpoint
from merge.line import STRAIGHT
from merge.pair import put_together
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


def test_outputs_and_questions_on_them_are_counted_beyond_whole_blocks() -> None:
    prompts = [list(range(40)), list(range(1000, 1050))]
    table = pa.table({"token_ids": prompts})
    question = SimpleNamespace(length=30)

    def share(samples: int, question: Any = None, block: int | None = 16, is_again: bool = False) -> float:
        asked = 46 if question else 0  # with 16 to spare
        built = SimpleNamespace(table=table, question=question, question_tokens=asked)
        costs, outputs = (sum(length + samples * each for length in (40, 50)) for each in (10 + asked, 10))
        task: Any = SimpleNamespace(spec=SimpleNamespace(samples=samples, max_tokens=10), built=built)
        task.shards, task.costs, task.output_costs = ((0, 2),), (costs,), (outputs,)
        return written_share(task, block, is_again) * (outputs if is_again else costs)

    assert share(1) == 40 + 10 + 50 + 10
    # 32 of 40 tokens and 48 of 50 come from the cache in the second and the third sample.
    assert share(3) == pytest.approx(40 + 2 * 8 + 50 + 2 * 2 + 6 * 10)
    # Of a prompt and its answer 48 of 50 tokens do, and 48 of 60; the question has no room to spare.
    asked = 3 * (2 + 30) + 3 * (12 + 30)
    assert share(3, question) == pytest.approx(40 + 2 * 8 + 50 + 2 * 2 + 6 * 10 + asked)
    assert share(3, question, is_again=True) == pytest.approx(share(3))
    # Without a cache each request computes all that it has.
    assert share(3, question, block=None) == pytest.approx(3 * (50 + 60) + 3 * (80 + 90))


def test_what_is_scored_and_what_is_sampled_go_at_their_own_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdasweep.expected_time.active_parameters", lambda prepared: 10**9)
    likely = lambda task, block, is_again=False: 0.5 if block is not None else 1.0  # noqa: E731
    monkeypatch.setattr("lambdasweep.expected_time.computed_share", likely)
    monkeypatch.setattr("lambdasweep.expected_time.written_share", likely)
    config = SimpleNamespace(replicas=2, rescore=("0",))
    shape = LLAMA_8B | {"num_hidden_layers": 1}
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    quiz, written = SimpleNamespace(costs=(4000,)), SimpleNamespace(costs=(800,), output_costs=(600,))
    prepared: Any = SimpleNamespace(tasks={"quiz": quiz}, prompts={"sums": written}, config=config)
    prepared.settings = SimpleNamespace(device="cuda", block_size=16, ranks=1)
    prepared.pair = put_together({"base": one, "aligned": one}, STRAIGHT)
    run = RunDir(tmp_path / "run")
    commit_json(run.sweep_json, {"pair": {}, "engine": {}, "versions": {}})
    records = {"quiz": TaskRecord(("0", "1"), ((0, 1),), (1,)).to_json()}
    records["sums"] = TaskRecord(("0", "1"), ((0, 1),), (1,), "answers", rescored={"0": ("0", "1")}).to_json()
    commit_json(run.plan_json, {"tasks": records})
    left = [Unit("quiz", "1", 0, 0, 1, 8000), Unit("sums", "1", 0, 0, 1, 2000)]
    flops = 2 * 10**9 / (2 * FLOPS_PER_GPU)  # seconds a token

    def commit(task: str, kind: str, computed: int) -> Ahead:
        times = 1, 0, computed, 0, 1.0, 8.0, 1.0, "replica-0", "a", "H100", "reload", ("0f",)
        receipt = Receipt(task, "0", 0, *times)
        commit_json(run.unit("receipts", *receipt.key), receipt.to_json())
        commit_table(run.unit(kind, *receipt.key), pa.table({"row": [0]}))
        return ahead(prepared, left, run, read_begun(run))

    assert ahead(prepared, left, run, read_begun(run)).seconds == pytest.approx(5000 * flops)
    half = commit("quiz", "tokens", 3000)  # the unit took ten seconds, and three quarters of its tokens were computed
    assert half.tokens == 7000
    assert half.seconds == pytest.approx(6000 / (2 * 300) + 1000 * flops)
    assert half.basis.startswith(
        "scored at 300 tokens/s a replica, as in the 1 unit so far, 2 replicas; sampled 2 FLOP"
    )
    both = commit("sums", "generations", 80)  # outputs ended early: a tenth
    assert both.tokens == 6200
    assert both.seconds == pytest.approx(6000 / (2 * 300) + 200 / (2 * 8))
    assert "; sampled at 8 tokens/s a replica" in both.basis
    # What is scored again is as long as it was written, until some of it is done; and it goes at a speed of its own.
    left.append(Unit("sums@0", "1", 0, 0, 1, 3000, at="0"))
    assert ahead(prepared, left, run, read_begun(run)).tokens == 6500
    again = commit("sums@0", "rescored", 150)
    assert again.tokens == 6950
    assert again.seconds == pytest.approx(6000 / (2 * 300) + 200 / (2 * 8) + 750 / (2 * 15))
    assert again.basis.endswith("; scored again at 15 tokens/s a replica, as in the 1 unit so far, 2 replicas")
    only = ahead(prepared, left[:1], run, read_begun(run))
    assert (only.seconds, only.basis) == (10, "at 300 tokens/s a replica, as in the 1 unit so far, 2 replicas")
    config_of_a_hybrid = one.config | {"mamba_d_state": 16, "model_type": "nonesuch"}
    base = replace(one, config=config_of_a_hybrid)
    prepared.pair = replace(prepared.pair, base=base, aligned_by_name={"": base})
    new = RunDir(tmp_path / "new")
    assert ahead(prepared, left[:1], new, read_begun(new)).tokens == 8000  # no prefix is cached


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_8B, 8.03), (QWEN_30B_A3B, 3.3)])
def test_of_experts_those_count_that_a_token_goes_to(tmp_path: Path, shape: dict[str, Any], billions: float) -> None:
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    prepared: Any = SimpleNamespace(pair=put_together({"base": one, "aligned": one}, STRAIGHT))
    assert active_parameters(prepared) == pytest.approx(billions * 1e9, rel=0.02)
