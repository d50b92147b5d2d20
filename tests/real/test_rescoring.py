"""What the demo pair writes at each λ is scored again under others, and its answers are judged by the model itself.

A whole sweep through the command line; numbers are held against transformers in fp32 and against scikit-learn.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import brier_score_loss, roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from contract.rundir import RunDir
from lambdasweep.demo import ALIGNED, BASE, CLOZE
from tests.support.scored_requests import export
from tests.support.sweep_process import Sweep, alive, committed, tables, units
from tests.support.waiting import until

GRID, UNDER = ("0", "0.5", "1"), ("0", "0.25")  # 0.25 is not on the grid
DOCUMENTS, SAMPLES = 220, 3
ASKED = "\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is: ("


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("inputs")
    rows = []
    for line in CLOZE.read_text().splitlines()[:DOCUMENTS]:
        row = json.loads(line)
        rows.append({"prompt": f"{row['query']}\nAnswer:", "answers": [row["choices"][row["gold"]]]})
    rows[5]["prompt"] = "far too long " * 300  # quarantined
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = ["--repeats", str(SAMPLES), "--temperature", "1", "--max-tokens", "12", "--until", r"\n"]
    task = ["--task", f"animals={root / 'rows.jsonl'}:generate", "--p-true", "kadavath", *sampling]
    pair = ["--base", str(BASE), "--aligned", str(ALIGNED), "--max-model-len", "256"]
    return [*pair, *task, "--lambdas", ",".join(GRID), "--replicas", "2"]


@pytest.fixture(scope="module")
def run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("whole") / "run"
    sweep = Sweep(out, [*arguments, "--rescore", ",".join(UNDER)])
    assert sweep.wait() == 3, sweep.text()
    assert "the probability of the whole output" in sweep.text()
    return RunDir(out)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedModel]:
    """θ(λ) as transformers loads it."""
    root = tmp_path_factory.mktemp("models")
    folders = {lam: export(BASE, ALIGNED, lam, root / lam) for lam in {*GRID, *UNDER}}
    return {lam: AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32).eval() for lam, one in folders.items()}


def logprobs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[len(ids), vocabulary], of what follows each token."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_every_unit_is_there(run: RunDir) -> None:
    assert (
        tables(run.root)
        == units(run.root)
        == len(GRID) * (1 + len(UNDER)) * len(run.plan()["tasks"]["animals"]["shards"])
    )
    for lam in GRID:
        written = run.generations("animals", lam)
        assert len(written) == (DOCUMENTS - 1) * SAMPLES
        for under in UNDER:
            again = run.rescored("animals", lam, under)
            assert again["request_id"].equals(written["request_id"])
            assert again["sample"].equals(written["sample"])
            assert set(again["under"].to_pylist()) == {under}
            assert set(again["point"].to_pylist()) == {lam}


@pytest.mark.parametrize("under", UNDER)
def test_outputs_have_the_scores_of_transformers_under_another_lambda(
    run: RunDir, models: dict[str, PreTrainedModel], under: str
) -> None:
    prompts = pq.read_table(run.requests("animals"))["token_ids"].to_pylist()
    far = 0.0
    for lam in GRID:
        written = run.generations("animals", lam).to_pylist()
        again = run.rescored("animals", lam, under).to_pylist()
        for own, row in list(zip(written, again, strict=True))[::41]:
            prompt, ids = prompts[row["request_id"]], own["token_ids"]
            exact = logprobs(models[under], prompt + ids)[len(prompt) - 1 : -1]
            wanted = exact[torch.arange(len(ids)), ids]
            assert row["logprobs"] == pytest.approx(wanted.tolist(), abs=1e-4)
            assert row["top1_ids"] == exact.argmax(-1).tolist()
            assert row["ranks"] == (1 + (exact > wanted[:, None] + 1e-6).sum(-1)).tolist()
            far = max(far, max(abs(np.array(row["logprobs"]) - np.array(own["logprobs"]))) if lam != under else 0.0)
            if lam == under:
                assert row["logprobs"] == pytest.approx(own["logprobs"], abs=1e-4)
    assert far > 0.1


@pytest.mark.parametrize("lam", GRID)
def test_p_true_is_that_of_transformers(run: RunDir, models: dict[str, PreTrainedModel], lam: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = pq.read_table(run.requests("animals"))["prompt"].to_pylist()
    letters = [tokenizer(letter)["input_ids"][0] for letter in "AB"]
    for row in run.generations("animals", lam).to_pylist()[::37]:
        ids = tokenizer(prompts[row["request_id"]] + row["text"] + ASKED)["input_ids"]
        expected = logprobs(models[lam], ids)[-1][letters].tolist()
        assert [row["true_logprob"], row["false_logprob"]] == pytest.approx(expected, abs=1e-4)


def test_metrics_of_these_confidences_are_those_of_scikit_learn(run: RunDir) -> None:
    rows = {
        (row["metric"], row["confidence"], row["point"]): row
        for row in pq.read_table(run.metrics_parquet).to_pylist()
        if row["split"] == "all"
    }
    for lam in GRID:
        right = np.array(run.graded("animals", lam)["correct"].to_pylist())
        under = [sum(one) for one in run.rescored("animals", lam, "0")["logprobs"].to_pylist()]
        lengths = [len(one) for one in run.generations("animals", lam)["token_ids"].to_pylist()]
        true, false = (run.generations("animals", lam)[name].to_numpy() for name in ("true_logprob", "false_logprob"))
        sure = {
            "sum@0": np.exp(under),
            "tokens@0": np.exp(np.array(under) / lengths),
            "p_true": expit(true.astype(np.float64) - false),
        }
        assert 0 < right.mean() < 1
        for name, confidence in sure.items():
            assert rows["auroc", name, lam]["value"] == pytest.approx(roc_auc_score(right, confidence), abs=1e-9)
            assert rows["brier", name, lam]["value"] == pytest.approx(brier_score_loss(right, confidence), abs=1e-9)
            assert rows["missing", name, lam]["value"] == 0.0
        assert rows["ece_width15", "tokens@0.25", lam]["ci_low"] is not None


def test_a_kill_while_it_is_scored_again_changes_no_byte(run: RunDir, arguments: list[str], tmp_path: Path) -> None:
    """And what is scored again may be asked for later, and more of it."""
    out = tmp_path / "run"
    plain = Sweep(out, arguments)
    assert plain.wait() == 3, plain.text()
    written = committed(out)
    assert not (out / "rescored").exists()
    whole = [*arguments, "--rescore", ",".join(UNDER)]
    killed = Sweep(out, whole)
    killed.until(lambda: any(out.glob("rescored/*/*/shard-*.parquet")))
    engines = killed.replicas()
    killed.process.kill()
    killed.process.wait()
    until(lambda: not alive(engines))
    assert tables(out) < units(run.root)
    again = Sweep(out, whole)
    assert again.wait() == 3, again.text()
    found = committed(out)
    assert found == committed(run.root)
    for path, content in written.items():
        assert path == "metrics.parquet" or found[path] == content
