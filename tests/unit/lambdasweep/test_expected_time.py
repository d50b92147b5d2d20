"""How many tokens are computed and what a token costs, held against counts by hand and against what model cards say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from contract import schemas
from lambdasweep.expected_time import active_parameters, computed_share, computed_tokens
from lambdasweep.prepare import token_counts
from merge.checkpoint import open_checkpoint
from merge.line import STRAIGHT
from merge.pair import join
from serve.engine import Prompt
from tests.support.shapes import LLAMA_8B, QWEN_30B_A3B, write_shape


def test_what_prompts_begin_with_alike_is_computed_once_in_whole_blocks() -> None:
    shared = list(range(40))
    prompts = [
        Prompt([*shared, 100], 40, []),  # 41
        Prompt([*shared, 101], 40, []),  # 32 of 40 are read
        Prompt([*shared, 102], 20, []),  # 16: rows from 20 on are wanted
        Prompt([7, *shared], 40, []),  # nothing: another beginning
        Prompt(shared[:16], 15, []),  # nothing: the last row of a block is wanted
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
    # Two units; in each the examples once, of which 496 are whole blocks, and 84 tokens of each of the other 19 documents.
    assert computed_share(task, 16) == pytest.approx(2 * (580 + 19 * 84) / (160 * 581))


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_8B, 8.03), (QWEN_30B_A3B, 3.3)])
def test_of_experts_those_count_that_a_token_goes_to(tmp_path: Path, shape: dict[str, Any], billions: float) -> None:
    one = open_checkpoint(str(write_shape(tmp_path / "model", shape)), "base")
    prepared: Any = SimpleNamespace(pair=join({"base": one, "aligned": one}, STRAIGHT))
    assert active_parameters(prepared) == pytest.approx(billions * 1e9, rel=0.02)
