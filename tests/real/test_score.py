"""The command line scores whole batches, with a real Ray cluster, real vLLM engines and real kills."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from contract.commit import read_identity
from contract.rundir import RunDir
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.checkpoints import write_checkpoint
from tests.support.sweep_process import Sweep, alive
from tests.support.waiting import until

SMALL = ["--max-model-len", "256", "--engine", "kv_cache_memory_bytes=67108864"]


class Score(Sweep):
    """This is one `lambdasweep score` process."""

    command = "score"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_checkpoint(root / "base", seed=0)
    write_checkpoint(root / "aligned", seed=1)
    return root


def of_pair(pair: Path, lam: str) -> list[str]:
    return ["--base", str(pair / "base"), "--aligned", str(pair / "aligned"), "--lam", lam]


def results(out: Path) -> dict[str, bytes]:
    """Return every file of the results by its path; receipts are not part of them."""
    kinds = ("scores", "quarantine", "score.json", "repeated_ids.parquet")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] in kinds
    }


def test_kills_change_no_byte(pair: Path, tmp_path: Path) -> None:
    rows = 6000
    ids: list[int | None] = list(range(rows))
    prompts = [f"Question {n // 3}: which of these is it? " + "so " * (n // 3 % 60) for n in range(rows)]
    continuations = [f" number {n % 3}" for n in range(rows)]
    ids[5], ids[4000], prompts[7] = None, 6, "far too long " * 300
    table = pa.table({"key": ids, "prompt": prompts, "continuation": continuations})
    pq.write_table(table.slice(0, 3000), tmp_path / "a.parquet", row_group_size=400, use_dictionary=False)
    pq.write_table(table.slice(3000), tmp_path / "b.parquet", use_dictionary=False)  # one row group makes several units
    arguments = [*of_pair(pair, "0.35"), "--requests", str(tmp_path / "?.parquet"), "--id", "key", *SMALL]
    arguments += ["--replicas", "2"]

    # First the replicas are killed, then the driver, and then the batch is continued.
    out = ScoreDir(tmp_path / "killed")
    batch = Score(out.root, arguments)
    batch.until(lambda: out.parts("scores"))
    for replica in batch.replicas():
        replica.kill()
    before = out.parts("scores")
    batch.until(lambda: out.parts("scores") > before)
    engines = batch.replicas()
    batch.process.kill()
    batch.process.wait()
    until(lambda: not alive(engines), 60)
    total = out.score()["units"]
    assert len(before) < len(out.parts("scores")) < total
    assert ".2 is ready" in batch.text()
    batch = Score(out.root, arguments)
    assert batch.wait() == 3, batch.text()
    assert f"of {total} units are committed already" in batch.text()

    # Nothing disturbs this batch.
    reference = ScoreDir(tmp_path / "reference")
    batch = Score(reference.root, arguments)
    assert batch.wait() == 3, batch.text()
    assert results(out.root) == results(reference.root)
    assert reference.parts("scores") == set(range(total))

    # Every row is there once, in input order, scored or with its reason.
    scores, refused = pq.read_table(reference.root / "scores"), pq.read_table(reference.root / "quarantine")
    bad = {
        ("a.parquet", 5): (None, "null id"),
        ("a.parquet", 6): (6, "repeated id"),
        ("a.parquet", 7): (7, "2408 tokens are more than the 256 the engine takes"),
        ("b.parquet", 1000): (6, "repeated id"),
    }
    found = {(Path(row["file"]).name, row["row"]): (row["key"], row["reason"]) for row in refused.to_pylist()}
    assert found == bad
    assert scores["key"].to_pylist() == [n for n in range(rows) if n not in (5, 6, 7, 4000)]
    assert scores["num_tokens"].to_pylist() == [len(row) for row in scores["logprobs"].to_pylist()]
    identity = read_identity(reference.part("scores", 0))
    assert (identity["lam"], identity["rows"][0]) == ("0.35", 0)


def test_scores_are_those_of_a_sweep(pair: Path, tmp_path: Path) -> None:
    rows = [
        {"context": f"The number {n} is " + "very " * (n % 50) + "often", "continuation": f"seen {n}"}
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    task = ["--task", f"rows={tmp_path / 'rows.jsonl'}"]
    sweep = Sweep(run.root, [*of_pair(pair, "0")[:4], "--lambdas", "0,0.35", *task, *SMALL, "--replicas", "1"])
    assert sweep.wait() == 0, sweep.text()
    texts = {"prompt": [row["context"] for row in rows], "continuation": [" " + row["continuation"] for row in rows]}
    pq.write_table(pa.table({"id": range(60), **texts}), tmp_path / "texts.parquet")
    requests = pq.read_table(run.requests("rows"))
    pairs = zip(requests["token_ids"].to_pylist(), requests["continuation_start"].to_pylist(), strict=True)
    cut = [(ids[:start], ids[start:]) for ids, start in pairs]
    tokens = {"prompt_token_ids": [a for a, _ in cut], "continuation_token_ids": [b for _, b in cut]}
    pq.write_table(pa.table({"id": range(60), **tokens}), tmp_path / "tokens.parquet")
    cases = {
        "texts": (["--model", str(pair / "base")], "0"),  # one checkpoint is scored, without a pair
        "tokens": (of_pair(pair, "0.35"), "0.35"),
    }
    for name, (model, lam) in cases.items():
        file = ["--requests", str(tmp_path / f"{name}.parquet")]
        batch = Score(tmp_path / name, [*model, *file, *SMALL, "--replicas", "1"])
        assert batch.wait() == 0, batch.text()
        ours, theirs = pq.read_table(tmp_path / name / "scores"), run.tokens("rows", lam)
        assert ours.num_rows == 60
        for column in ("logprobs", "ranks", "top1_ids", "top1_logprobs"):
            assert ours[column].to_pylist() == theirs[column].to_pylist(), (name, column)


def test_whole_prompts_are_those_of_transformers(pair: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    texts = ["The rain in Spain", "x", "stays mainly " * 60, "in the plain"]
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "prompt": texts}), tmp_path / "in.parquet")
    arguments = ["--model", str(pair / "base"), "--requests", str(tmp_path / "in.parquet"), *SMALL]
    batch = Score(tmp_path / "out", [*arguments, "--replicas", "1"])
    assert batch.wait() == 0, batch.text()
    tokenizer: Any = load_tokenizer(pair / "base")
    model = AutoModelForCausalLM.from_pretrained(pair / "base", dtype=torch.float32)
    for row, text in zip(pq.read_table(tmp_path / "out" / "scores").to_pylist(), texts, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert row["num_tokens"] == len(ids)
        expected: list[float] = []
        # Windows of 254 tokens follow one that was scored before, and the last one is full.
        while len(expected) < len(ids):
            end = min(len(expected) + 254, len(ids))
            window = [tokenizer.bos_token_id, *ids[:end]] if end <= 254 else ids[end - 255 : end]
            with torch.no_grad():
                logits = model(torch.tensor([window])).logits[0].log_softmax(-1)
            scored = logits[:-1].gather(1, torch.tensor(window[1:])[:, None])[:, 0].tolist()
            expected += scored[len(scored) - (end - len(expected)) :]
        assert row["logprobs"] == pytest.approx(expected, abs=2e-5)
        assert row["sum_logprob"] == pytest.approx(sum(expected), abs=2e-5 * len(ids))
    assert len(tokenizer(texts[2])["input_ids"]) > 256


def test_a_file_that_is_damaged_on_the_way_stops_the_batch_and_is_gone_on_with_once_restored(
    pair: Path, tmp_path: Path
) -> None:
    texts = [f"text number {n}" for n in range(100)]
    for name in ("a", "b"):
        table = pa.table({"id": [f"{name}{n}" for n in range(100)], "prompt": texts})
        pq.write_table(table, tmp_path / f"{name}.parquet", use_dictionary=False)
    file = tmp_path / "b.parquet"
    sound = file.read_bytes()
    chunk = pq.read_metadata(file).row_group(0).column(1)
    begin = chunk.data_page_offset
    file.write_bytes(sound[:begin] + bytes(chunk.total_compressed_size) + sound[begin + chunk.total_compressed_size :])
    out = ScoreDir(tmp_path / "out")
    arguments = ["--model", str(pair / "base"), "--requests", str(tmp_path / "?.parquet"), *SMALL, "--replicas", "1"]
    batch = Score(out.root, arguments)
    assert batch.wait() == 2, batch.text()
    assert f"lambdasweep: {file} cannot be read" in batch.text()
    assert 1 not in out.parts("scores")
    file.write_bytes(sound)
    batch = Score(out.root, arguments)
    assert batch.wait() == 0, batch.text()
    assert pq.read_table(out.root / "scores")["id"].to_pylist() == [f"{n}{k}" for n in "ab" for k in range(100)]
