"""Samples of real engines are the same again and again, whatever came before and however prompts were cut, and they are from
the model's own distribution. Rows that are no prompts are quarantined."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lm_eval.models.utils import postprocess_generated_text
from scipy.stats import chi2
from transformers import LlamaForCausalLM

from contract import schemas
from lambdasweep.tasks.tokens import load_tokenizer
from serve.sampling import seed_of
from tests.support import engine_process
from tests.support.checkpoints import VOCAB, write_checkpoint
from tests.support.scored_requests import export, make_requests

SAMPLES, MAX_TOKENS, STOPS, MANY = 8, 12, (1, 40), 2000
LENGTHS = (1, 5, 31, 32, 33, 70, 100, 150)
BAD = {"empty": [], "long": [5] * 245, "vocabulary": [5, VOCAB]}
TEXTS = ("The sea and the", "Which is a metal?", "A", "Question: who?\n\nAnswer:", "Once upon a time", "2 + 2 =")
REASONS = ["empty prompt", "245 tokens and 12 to be sampled are more than the 256", "a token id outside the vocabulary"]
# each entry is λ and the sampling; None is another unit, which is scored
GREEDY = {"samples": 2, "temperature": 0.0}
STEPS = (
    ("0.5", {}),
    ("0", None),
    ("0.5", GREEDY),
    ("0", {}),
    ("0.5", {}),
    ("0.5", {"until": []}),
    ("0.5", {"until": ["e", "zz", " A"]}),
    ("0.5", {"samples": MANY, "temperature": 0.7}),
)


def prompts_table() -> pa.Table:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    rows = [*prompts, *BAD.values()]
    columns = {"request_id": range(len(rows)), "doc_id": [str(row) for row in range(len(rows))]}
    return pa.table({**columns, "prompt": [""] * len(rows), "token_ids": rows}, schema=schemas.PROMPTS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return write_checkpoint(root / "base", seed=0), write_checkpoint(root / "aligned", seed=1)


@pytest.fixture(scope="module")
def results(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted. The narrow one cuts prompts, and takes few at a
    time; the wide one starts with the unit that the narrow one ends with."""
    root = tmp_path_factory.mktemp("engines")
    pq.write_table(prompts_table(), root / "prompts.parquet")
    pq.write_table(prompts_table().slice(1, 1), root / "one.parquet")
    pq.write_table(make_requests()[0], root / "requests.parquet")
    ids = load_tokenizer(pair[0])(list(TEXTS))["input_ids"]
    columns = {"request_id": range(len(TEXTS)), "doc_id": TEXTS, "prompt": TEXTS, "token_ids": ids}
    pq.write_table(pa.table(columns, schema=schemas.PROMPTS), root / "texts.parquet")
    jobs = {}
    for name, changes in (("narrow", {"max_num_batched_tokens": 48, "max_num_seqs": 6}), ("wide", {})):
        steps: list[list[Any]] = []
        for number, (lam, asked) in enumerate(STEPS):
            steps.append([lam, root / f"{name}-{number}.parquet"])
            if asked is not None:
                is_one = asked.get("samples") == MANY
                sampling = {"samples": SAMPLES, "temperature": 1.0, "stop_token_ids": STOPS, **asked}
                sampling["max_tokens"] = 1 if is_one else MAX_TOKENS
                file = "one" if is_one else "texts" if "until" in asked else "prompts"
                steps[-1].append({"prompts": root / f"{file}.parquet", "sampling": sampling})
        jobs[name] = {
            "base": pair[0],
            "aligned": pair[1],
            "settings": engine_process.settings(**changes).to_json(),
            "parents": "auto",
            "requests": root / "requests.parquet",
            "steps": steps[:-1] if name == "narrow" else [steps[4], steps[-1], steps[0]],
        }
    return engine_process.run(root, jobs)


def test_a_unit_is_the_same_again_after_others(results: dict[str, Any]) -> None:
    tables, counted = results["narrow"]
    assert tables[0].equals(tables[4])
    assert json.dumps(counted[0]) == json.dumps(counted[4])
    assert not tables[0]["token_ids"].equals(tables[3]["token_ids"])  # the samples differ between λs
    assert tables[0]["seed"].equals(tables[3]["seed"])


def test_how_prompts_are_cut_changes_no_sample(results: dict[str, Any]) -> None:
    """A fresh engine gives the same in another order of units, because the n-th token is made with the n-th draw."""
    assert results["wide"][0][0].equals(results["narrow"][0][0])
    assert results["wide"][0][2].equals(results["wide"][0][0])
    assert results["wide"][1][0]["cached_tokens"] > 0  # the samples of a prompt share it


def test_the_table_says_what_was_drawn(results: dict[str, Any]) -> None:
    table = results["narrow"][0][0]
    assert table.schema.equals(schemas.GENERATIONS)
    rows, prompts = table.to_pylist(), prompts_table()["token_ids"].to_pylist()
    assert [(row["request_id"], row["sample"]) for row in rows] == [
        (prompt, sample) for prompt in range(len(LENGTHS)) for sample in range(SAMPLES)
    ]
    for row in rows:
        ids = row["token_ids"]
        assert row["seed"] == seed_of(row["request_id"], prompts[row["request_id"]], row["sample"])
        stopped = row["finish_reason"] == "stop"
        assert (ids[-1] in STOPS, len(ids) == MAX_TOKENS) == (True, False) if stopped else (False, True)
        assert not set(ids[:-1]) & set(STOPS)
        assert row["text"] == " ".join(map(str, ids[:-1] if stopped else ids))
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    assert len({row["seed"] for row in rows}) == len(rows)
    assert len({tuple(row["token_ids"]) for row in rows}) > len(rows) // 2
    assert results["narrow"][1][0]["new_tokens"] == sum(len(row["token_ids"]) for row in rows)


def test_what_is_no_prompt_is_quarantined(results: dict[str, Any]) -> None:
    for step in (0, 2, 3):
        found = results["narrow"][1][step]["quarantine"]
        assert [row["request_id"] for row in found] == [len(LENGTHS) + at for at in range(len(BAD))]
        assert all(row["reason"].startswith(reason) for row, reason in zip(found, REASONS, strict=True))


@pytest.fixture(scope="module")
def merged(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    out = export(*pair, "0.5", tmp_path_factory.mktemp("merged") / "model")
    return LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def test_temperature_0_is_greedy_as_in_transformers(results: dict[str, Any], merged: LlamaForCausalLM) -> None:
    rows = results["narrow"][0][2].to_pylist()
    for request_id, prompt in enumerate(prompts_table()["token_ids"].to_pylist()[: len(LENGTHS)]):
        with torch.no_grad():
            out = merged.generate(
                torch.tensor([prompt]),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=list(STOPS),
                pad_token_id=2,
            )
        expected = out[0, len(prompt) :].tolist()
        assert [row["token_ids"] for row in rows if row["request_id"] == request_id] == [expected] * 2


def test_a_sample_ends_at_a_text(results: dict[str, Any], pair: tuple[Path, Path]) -> None:
    """It ends with the token that completes the text, even inside it; its text is what lm-eval makes of the whole."""
    tokenizer = load_tokenizer(pair[0])
    without, table = (results["narrow"][0][step].to_pylist() for step in (5, 6))
    inside = 0
    for row, whole in zip(table, without, strict=True):
        ids, until = row["token_ids"], STEPS[6][1]["until"]
        assert ids == whole["token_ids"][: len(ids)]
        kept = ids[:-1] if ids[-1] in STOPS else ids
        text = tokenizer.decode(kept, skip_special_tokens=True)
        assert row["text"] == postprocess_generated_text(text, until, None)
        is_cut = any(one in text for one in until)
        assert not any(one in tokenizer.decode(kept[:-1], skip_special_tokens=True) for one in until)
        assert (row["finish_reason"] == "stop") == (is_cut or ids[-1] in STOPS)
        assert is_cut or ids == whole["token_ids"]
        inside += is_cut and not text.endswith(tuple(until))
        assert len(row["logprobs"]) == len(ids)
    assert inside  # in some samples the text ends inside a token
    assert len({row["finish_reason"] for row in table}) == 2


def test_tokens_have_the_scores_of_the_model_at_temperature_1(
    results: dict[str, Any], merged: LlamaForCausalLM
) -> None:
    """Tokens that are greedy, sampled at 1 and sampled at 0.7 have the scores that transformers gives them."""
    prompts = prompts_table()["token_ids"].to_pylist()
    sampled, hot = results["narrow"][0][0].to_pylist(), results["wide"][0][1].to_pylist()
    for row in [*results["narrow"][0][2].to_pylist()[::2], *sampled[::7], *hot[:5]]:
        ids, prompt = row["token_ids"], prompts[1] if row in hot[:5] else prompts[row["request_id"]]
        with torch.no_grad():
            logits = merged(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        exact = logits.log_softmax(-1)
        wanted = exact[torch.arange(len(ids)), ids]
        assert row["logprobs"] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert row["ranks"] == (1 + (exact > wanted[:, None] + 1e-6).sum(-1)).tolist()
        assert row["top1_ids"] == exact.argmax(-1).tolist()
        assert row["top1_logprobs"] == pytest.approx(exact.amax(-1).tolist(), abs=1e-4)
        assert row["entropies"] == pytest.approx(torch.special.entr(exact.exp()).sum(-1).tolist(), abs=1e-4)


def test_samples_are_from_the_models_distribution(results: dict[str, Any], merged: LlamaForCausalLM) -> None:
    """A chi-squared test takes 2000 first tokens at temperature 0.7, with the rare tokens in one class."""
    prompt = prompts_table()["token_ids"].to_pylist()[1]
    with torch.no_grad():
        logits = merged(torch.tensor([prompt])).logits[0, -1].double()
    share = (logits / 0.7).softmax(-1).numpy()
    drawn = results["wide"][0][1]["token_ids"].combine_chunks().flatten().to_numpy()
    assert len(drawn) == MANY
    counts = np.bincount(drawn, minlength=VOCAB)
    often = share * MANY >= 10
    seen, expected = (np.append(one[often], one[~often].sum()) for one in (counts, share * MANY))
    assert len(seen) > 5
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(seen) - 1) > 1e-4
