"""Short prompts of a model with two kinds of rotary factors get the short ones, as in transformers."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

from contract import schemas
from lambdasweep.config import load_config
from lambdasweep.prepare import prepare
from tests.support import engine_process
from tests.support.checkpoints import VOCAB, write_tokenizer

LAM = "0.35"
PATH = ("0", LAM)
SHORT, WINDOW = 96, 2048  # so many tokens the short factors are meant for, and so many the model takes
LENGTHS = (9, 33, SHORT)


def write(directory: Path, seed: int) -> Path:
    """Write a two-layer Phi-3 whose long factors differ much from its short ones."""
    dims = 16  # a head has half as many factors as elements
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SHORT}
    rope |= {"short_factor": [1.0 + place / 20 for place in range(dims)], "long_factor": [4.0] * dims}
    config = Phi3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        original_max_position_embeddings=SHORT,
        rope_parameters=rope,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Phi3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator) + float("norm" in name))
    model.to(torch.bfloat16).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def requests() -> pa.Table:
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [3 + (17 * place + 29 * length) % (VOCAB - 12) for place in range(length)]
        rows.append((number, str(number), 0, ids, 1, 1, True))
    return pa.Table.from_pylist([dict(zip(schemas.REQUESTS.names, row, strict=True)) for row in rows], schemas.REQUESTS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phi3")
    for seed, role in enumerate(("base", "aligned")):
        write(root / role, seed)
    one, two = (load_file(root / role / "model.safetensors") for role in ("base", "aligned"))
    merged = {name: torch.lerp(one[name].float(), two[name].float(), float(LAM)).to(one[name].dtype) for name in one}
    write(root / "merged", 0)
    save_file(merged, root / "merged/model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def length(pair: Path) -> int:
    """Return how long requests a sweep of short prompts lets its engines take."""
    (pair / "prompts.jsonl").write_text('{"prompt": "Say"}\n')
    flags = {"base": str(pair / "base"), "aligned": str(pair / "aligned"), "lambdas": "0,1", "out": str(pair / "run")}
    prompts = [f"stories={pair / 'prompts.jsonl'}"]
    prepared = prepare(load_config(flags | {"max_tokens": 8}, [], prompts, [], None))
    assert prepared.engine_warnings == ()
    return prepared.settings.max_model_len


@pytest.fixture(scope="module")
def results(pair: Path, length: int) -> dict[str, Any]:
    """Return the tables of an engine's steps, by how long requests it takes."""
    pq.write_table(requests(), pair / "requests.parquet")
    jobs = {
        name: {
            "settings": engine_process.settings(max_model_len=most).to_json(),
            "requests": pair / "requests.parquet",
            "base": pair / "base",
            "aligned": pair / "aligned",
            "parents": "auto",
            "steps": [[lam, pair / f"{name}-{lam}.parquet"] for lam in PATH],
        }
        for name, most in (("short", length), ("long", SHORT + 1))
    }
    return engine_process.run(pair, jobs)


def gap(found: pa.Table, checkpoint: Path) -> float:
    """Return the largest difference to transformers in float32, in nats."""
    model = Phi3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    worst = 0.0
    for ids, ours in zip(requests()["token_ids"].to_pylist(), found["logprobs"].to_pylist(), strict=True):
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        theirs = [float(scores[row, token]) for row, token in enumerate(ids[1:])]
        worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    return worst


@pytest.mark.parametrize(("lam", "checkpoint"), [("0", "base"), (LAM, "merged")])
def test_short_prompts_score_as_in_transformers(
    pair: Path, results: dict[str, Any], length: int, lam: str, checkpoint: str
) -> None:
    assert length == SHORT
    assert gap(results["short"][0][PATH.index(lam)], pair / checkpoint) < 1e-4


def test_an_engine_that_may_get_a_longer_prompt_gives_all_of_them_the_long_factors(
    pair: Path, results: dict[str, Any]
) -> None:
    assert gap(results["long"][0][0], pair / "base") > 0.1
