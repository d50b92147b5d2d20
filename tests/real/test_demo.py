"""The whole pipeline measures the demo pair against the true posterior of its world."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from contract.grid import canonical
from contract.rundir import RunDir
from lambdasweep.demo import ALIGNED, BASE, CLOZE, LETTERS, world
from tests.support.waiting import run as run_command
from tests.support.warm_python import warm_python

FILES = {"letters": LETTERS, "cloze": CLOZE}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return the run that measured the parents of the demo pair by the whole pipeline: Ray, vLLM, tables, metrics."""
    out = tmp_path_factory.mktemp("demo") / "run"
    config = out.with_suffix(".toml")
    tasks = "".join(f'[[task]]\nname = "{task}"\nfile = "{file}"\nformat = "{task}"\n' for task, file in FILES.items())
    config.write_text(f'base = "{BASE}"\naligned = "{ALIGNED}"\nlambdas = "0,1"\n{tasks}')
    command = [
        warm_python(),
        "-m",
        "lambdasweep",
        "run",
        "--config",
        str(config),
        "--out",
        str(out),
        "--replicas",
        "1",
    ]
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    return RunDir(out)


def measured(run: RunDir, task: str, lam: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed logprobs of the choices [questions, 4], and their softmax, straight from the tokens table."""
    logprobs = np.array([sum(row) for row in run.tokens(task, lam).column("logprobs").to_pylist()]).reshape(-1, 4)
    odds = np.exp(logprobs - logprobs.max(1, keepdims=True))
    return logprobs, odds / odds.sum(1, keepdims=True)


def metric(run: RunDir, task: str, lam: str, name: str) -> float:
    rows = pq.read_table(run.metrics_parquet).to_pylist()
    wanted = (task, name, "sum", "all")
    rows = [row for row in rows if canonical(row["lam"]) == lam]
    found = [r["value"] for r in rows if (r["task"], r["metric"], r["confidence"], r["split"]) == wanted]
    assert len(found) == 1
    return float(found[0])


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize(("lam", "parent"), [("0", BASE), ("1", ALIGNED)])
def test_logprobs_are_those_of_transformers(run: RunDir, task: str, lam: str, parent: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parent)
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()
    logprobs, _ = measured(run, task, lam)
    for row, question in enumerate(world.evaluation()[task][:50]):
        context, answers = world.render(task, question)
        start = len(tokenizer(context).input_ids)
        for choice, answer in enumerate(answers):
            ids = torch.tensor([tokenizer(context + answer).input_ids])
            with torch.no_grad():
                steps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
            assert logprobs[row, choice] == pytest.approx(steps[start - 1 :].sum().item(), abs=1e-4)


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("lam", ["0", "1"])
def test_accuracy_and_ece_agree_with_the_true_posterior(run: RunDir, task: str, lam: str) -> None:
    """Gold answers are drawn from the known posterior, so each metric is known up to their sampling error."""
    questions = world.evaluation()[task]
    truth = np.array([question.posterior for question in questions])
    _, odds = measured(run, task, lam)
    guess, confidence = odds.argmax(1), odds.max(1)
    right = truth[np.arange(len(truth)), guess]  # the exact probability that each guess is right
    spread = np.sqrt((right * (1 - right)).sum()) / len(right)
    assert abs(metric(run, task, lam, "acc") - right.mean()) < 3 * spread
    assert abs(metric(run, task, lam, "overconfidence") - (confidence - right).mean()) < 3 * spread
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    exact, noise = 0.0, 0.0
    for number in range(15):
        inside = bins == number
        exact += abs((confidence - right)[inside].sum()) / len(right)
        noise += np.sqrt((right * (1 - right))[inside].sum()) / len(right)
    assert abs(metric(run, task, lam, "ece_width15") - exact) < 1.5 * noise
    divergence = (truth * np.log(truth / odds)).sum(1).mean()
    if lam == "0":
        assert divergence < 0.15  # in nats; the base has learned the world
    else:
        assert (confidence - right).mean() > 0.1  # post-training made it surer than the evidence allows
