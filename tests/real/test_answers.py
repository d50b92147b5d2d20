"""A real engine writes answers at a λ between the parents: outputs, metrics and scores are those of lm-eval's own `hf` model
and of transformers on the exported θ(λ), in fp32 on the CPU."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scipy.special import softmax
from transformers import AutoTokenizer, LlamaForCausalLM

from calibration.scores.per_answer import AnswerLoader
from contract.commit import commit_json, commit_table
from contract.records import read_plan
from contract.rundir import RunDir
from lambdasweep.tasks.answers import prompts_table
from lambdasweep.tasks.grading import write_graded
from lambdasweep.tasks.lm_eval_tasks.grade import LmEvalGrader
from lambdasweep.tasks.lm_eval_tasks.load import load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.own_metrics import LEFT_OUT, write_outcomes
from lambdasweep.tasks.lm_eval_tasks.requests import build_answers
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.tokens import load_tokenizer
from serve.settings import Sampling
from tests.support import engine_process
from tests.support.checkpoints import write_checkpoint
from tests.support.scored_requests import export, make_requests

LAM = "0.5"
NEW_TOKENS = 24
# A random model writes letters at random, so a letter is what its answers are, and some of them end an output.
TASK: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "train",
    "num_fewshot": 2,
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer.split('#### ')[-1]}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "generation_kwargs": {"until": ["Yb", " x"], "do_sample": False, "max_gen_toks": NEW_TOKENS},
    "filter_list": [
        {"name": "letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]},
        {
            "name": "last",
            "filter": [
                {"function": "regex", "regex_pattern": "([a-zA-Z])", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ],
    "metadata": {"version": 1.0},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return write_checkpoint(root / "base", seed=2, tie=False), write_checkpoint(root / "aligned", seed=3, tie=False)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("task")
    rows = [
        {"question": f"Which letter is number {number}?", "answer": f"Count on. #### {'hpY'[number % 3]}"}
        for number in range(16)
    ]
    for name, some in (("rows", rows[3:]), ("shots", rows[:3])):
        (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = {"test": str(root / "rows.json"), "train": str(root / "shots.json")}
    (root / "sums.yaml").write_text(yaml.safe_dump(TASK | {"dataset_kwargs": {"data_files": files}}))
    return root


@pytest.fixture(scope="module")
def run(pair: tuple[Path, Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return the task's answers as one engine wrote them at λ: greedily, and with four samples a document."""
    root = tmp_path_factory.mktemp("engine")
    tokenizer = load_tokenizer(pair[0])
    specs = {
        "sums": LmEvalSpec(str(folder / "sums.yaml")),
        "drawn": LmEvalSpec(str(folder / "sums.yaml"), name="drawn", repeats=4, temperature=0.7, p_true="kadavath"),
    }
    built, steps, plan = {}, [], {}
    for name, spec in specs.items():
        harness = load_lm_eval(spec)
        (task,) = harness.tasks
        one, settled = build_answers(task, tokenizer, (1,))
        (part,) = one.parts.values()
        built[name] = harness, one, part, task
        pq.write_table(part.table, root / f"{name}-prompts.parquet")
        sampling = Sampling(
            settled.samples,
            settled.temperature,
            settled.max_tokens,
            part.stop_token_ids,
            settled.top_p,
            settled.top_k,
            settled.until,
        )
        asked = {"prompts": root / f"{name}-prompts.parquet", "sampling": asdict(sampling), "p_true": spec.p_true}
        steps.append([LAM, root / f"{name}.parquet", asked])
        plan[name] = {
            "scored_as": "answers",
            "shards": [[0, len(part.table)]],
            "lambdas": [LAM],
            "samples": settled.samples,
            "metric": settled.metric,
            "p_true": settled.p_true,
        }
    # The space at the end of these prompts is one token with the letter that an answer begins with.
    seams = prompts_table(
        [str(number) for number in range(8)], [f"Letter {number}: " for number in range(8)], tokenizer
    )
    pq.write_table(seams, root / "seams-prompts.parquet")
    sampling = Sampling(6, 1.0, 8, (1,), until=("Yb",))
    asked = {"prompts": root / "seams-prompts.parquet", "sampling": asdict(sampling), "p_true": "kadavath"}
    steps.append([LAM, root / "seams.parquet", asked])
    pq.write_table(make_requests()[0], root / "requests.parquet")
    job = {
        "base": pair[0],
        "aligned": pair[1],
        "settings": engine_process.settings(max_num_seqs=8).to_json(),
        "parents": "auto",
        "requests": root / "requests.parquet",
        "steps": steps,
    }
    tables, counted = engine_process.run(root, {"one": job})["one"]
    assert not any(one["quarantine"] for one in counted)
    found = RunDir(root / "run")
    parent = {"source": "p", "fingerprint": "f"}
    commit_json(found.sweep_json, {"pair": {"base": parent, "aligned": parent}, "engine": {}, "versions": {}})
    commit_json(found.plan_json, {"tasks": plan})
    commit_table(found.requests("seams"), seams)
    commit_table(found.unit("generations", "seams", LAM, 0), tables.pop())
    for table, (name, (harness, one, part, task)) in zip(tables, built.items(), strict=True):
        commit_table(found.requests(name), part.table)
        commit_table(found.unit("generations", name, LAM, 0), table)
        write_outcomes(found, harness, [one], {}, read_plan(found))
        write_graded(found, name, part, LmEvalGrader(task), {}, read_plan(found))
    return found


@pytest.fixture(scope="module")
def merged(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(*pair, LAM, tmp_path_factory.mktemp("merged") / "model")


def test_greedy_outputs_and_metrics_are_those_of_lm_evals_hf_model(run: RunDir, folder: Path, merged: Path) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(merged), device="cpu", dtype="float32", batch_size=1)
    with pytest.MonkeyPatch.context() as patch:
        # lm-eval asks pip and the compiler, which takes seconds.
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        patch.setattr(evaluator, "get_git_commit_hash", lambda: None)
        expected = evaluator.simple_evaluate(
            model=model,
            tasks=["sums"],
            bootstrap_iters=0,
            log_samples=True,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
    assert expected
    theirs = {one["doc_id"]: one["resps"][0][0] for one in expected["samples"]["sums"]}
    rows = run.generations("sums", LAM).to_pylist()
    assert {row["request_id"]: row["text"] for row in rows} == theirs
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    # One of the texts ended it.
    assert any(len(row["token_ids"]) < NEW_TOKENS and row["token_ids"][-1] != 1 for row in rows)
    values = {row["metric"]: row["value"] for row in pq.read_table(run.outcomes("sums")).to_pylist()}
    assert values.pop(LEFT_OUT) == 0
    results = expected["results"]["sums"]
    assert values == {key: value for key, value in results.items() if "," in key and "_stderr" not in key}
    assert max(values.values()) > 0
    by_document = {(one["doc_id"], one["filter"]): one["exact_match"] for one in expected["samples"]["sums"]}
    for row in run.graded("sums", LAM).to_pylist():
        assert dict(row["metrics"]) == {
            f"exact_match,{name}": by_document[row["request_id"], name] for name in ("letter", "last")
        }
        assert row["correct"] == (by_document[row["request_id"], "letter"] == 1)


def test_samples_have_the_scores_of_the_model_at_temperature_1(run: RunDir, merged: Path) -> None:
    rows, prompts = (
        run.generations("drawn", LAM).to_pylist(),
        pq.read_table(run.requests("drawn"))["token_ids"].to_pylist(),
    )
    assert len(rows) == 4 * len(prompts)
    model = LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    for row in rows[::5]:
        ids, prompt = row["token_ids"], prompts[row["request_id"]]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        exact = logits.log_softmax(-1)
        assert row["logprobs"] == pytest.approx(exact[torch.arange(len(ids)), ids].tolist(), abs=1e-4)
        assert row["entropies"] == pytest.approx(torch.special.entr(exact.exp()).sum(-1).tolist(), abs=1e-4)


def test_p_true_is_that_of_transformers(run: RunDir, pair: tuple[Path, Path], merged: Path) -> None:
    """The model is asked in the words of Kadavath et al. (2022), behind each of its answers."""
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    model = LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    prompts = pq.read_table(run.requests("drawn"))["prompt"].to_pylist()
    rows, expected = run.generations("drawn", LAM).to_pylist(), []
    asked = "\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is: ("
    for row in rows[::3]:
        ids = tokenizer(prompts[row["request_id"]] + row["text"] + asked)["input_ids"]
        true, false = (tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB")
        with torch.no_grad():
            exact = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        expected.append([float(exact[one]) for (one,) in (true, false)])
        assert [row["true_logprob"], row["false_logprob"]] == pytest.approx(expected[-1], abs=1e-4)
    scores = AnswerLoader(run, "drawn", read_plan(run)["drawn"]).load(LAM)
    sure = np.exp(scores.logs["p_true"]).ravel()[::3]
    assert sure == pytest.approx(softmax(expected, axis=1)[:, 0], abs=1e-4)
    assert np.ptp(sure) > 1e-3
    assert "true_logprob" not in run.generations("sums", LAM).column_names


def test_p_true_across_a_seam_that_the_tokenizer_merges(run: RunDir, pair: tuple[Path, Path], merged: Path) -> None:
    """The text is tokenised as a whole, so what is asked is not the prompt's tokens and the answer's behind each other."""
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    model = LlamaForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    letters = [tokenizer(letter)["input_ids"][0] for letter in "AB"]
    prompts = pq.read_table(run.requests("seams")).to_pylist()
    asked = "\nIs the proposed answer:\n (A) True\n (B) False\nThe proposed answer is: ("
    table = pq.read_table(run.unit("generations", "seams", LAM, 0))
    merges, far = 0, 0.0

    def said(ids: list[int]) -> list[float]:
        with torch.no_grad():
            exact = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        return [float(exact[letter]) for letter in letters]

    for row in table.to_pylist():
        prompt = prompts[row["request_id"]]
        ids = tokenizer(prompt["prompt"] + row["text"] + asked)["input_ids"]
        expected = said(ids)
        assert [row["true_logprob"], row["false_logprob"]] == pytest.approx(expected, abs=1e-4)
        if ids[: len(prompt["token_ids"])] != prompt["token_ids"]:
            merges += 1
            apart = [*prompt["token_ids"], *tokenizer(row["text"])["input_ids"], *tokenizer(asked)["input_ids"]]
            far = max(far, abs(said(apart)[0] - expected[0]))
    assert table.num_rows == 48
    assert merges >= 5
    assert far > 1e-2  # the seam is seen in what the model says


def test_tokens_of_an_answer(run: RunDir, pair: tuple[Path, Path]) -> None:
    """The grades name the token in which an answer begins."""
    tokenizer = load_tokenizer(pair[0])
    seen = 0
    for row, grade in zip(run.generations("drawn", LAM).to_pylist(), run.graded("drawn", LAM).to_pylist(), strict=True):
        if len(grade["answer"]) == 1:
            wanted = row["text"][: row["text"].rfind(grade["answer"]) + 1]
            counts = range(1, len(row["token_ids"]) + 1)
            texts = [tokenizer.decode(row["token_ids"][:count], skip_special_tokens=True) for count in counts]
            assert grade["answer_start"] == next(at for at, text in enumerate(texts) if text.startswith(wanted))
            seen += 1
    assert seen > 5
