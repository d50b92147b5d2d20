"""The files of `report --lm-eval` are those that lm-eval itself writes of the same scores, and it reads them."""

import json
import math
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from calibration.analyse import analyse
from contract import schemas
from contract.commit import commit_json, commit_table
from contract.records import read_plan
from contract.rundir import RunDir
from lambdasweep.exchange.lm_eval_files import write_lm_eval
from lambdasweep.tasks.lm_eval_tasks.load import load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.own_metrics import write_outcomes
from lambdasweep.tasks.lm_eval_tasks.requests import build_instances
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.lm_eval_inputs import CHOICE, QUESTIONS, cache_of_datasets, model_of_lm_eval, scores, write_yaml
from tests.support.reports import add_quiz
from tests.support.tables import add_quarantine, add_scores, add_task

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")

NAMES = ("acc", "acc_norm", "acc_bytes")
ROWS = QUESTIONS[:4]
WHEN = datetime(2026, 1, 2, 3, 4, 5, 678)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.checkpoints import write_tokenizer

    root = tmp_path_factory.mktemp("lm-eval-files")
    write_tokenizer(root / "tokenizer")
    (root / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_yaml(root, "quiz", CHOICE, "questions.json", None)
    return root


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cache_of_datasets(tmp_path_factory.mktemp("datasets")):
        yield


@pytest.fixture(scope="module")
def theirs(root: Path) -> Path:
    """Return the folder that lm-eval's own evaluator and tracker write of the fake model."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(root / "theirs"))
    model = model_of_lm_eval(load_tokenizer(root / "tokenizer"), 64)
    with pytest.MonkeyPatch.context() as patch:
        # lm-eval asks pip, which takes seconds.
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")
        found = lm_eval.simple_evaluate(
            model=model,
            model_args={"pretrained": "aligned-lambda-0.5"},
            tasks=["quiz"],
            bootstrap_iters=100,
            log_samples=True,
            evaluation_tracker=tracker,
            task_manager=lm_eval.tasks.TaskManager(include_path=str(root), include_defaults=False),
        )
    assert found
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    tracker.save_results_samples("quiz", samples["quiz"])
    (folder,) = (root / "theirs").iterdir()
    return folder


@pytest.fixture(scope="module")
def ours(root: Path) -> Path:
    """Return the folder of one λ that we write of a run whose tables hold the same scores."""
    harness = load_lm_eval(LmEvalSpec(str(root / "quiz.yaml")))
    built = tuple(build_instances(task, load_tokenizer(root / "tokenizer"), 64) for task in harness.tasks)
    run = RunDir(root / "run")
    parents = {
        "base": {"source": str(root / "tokenizer"), "fingerprint": "f"},
        "aligned": {"source": "/far/aligned", "fingerprint": "g"},
    }
    engine = {"device": "cpu", "dtype": "float32", "max_model_len": 64}
    sweep = {"pair": parents, "engine": engine, "versions": {"vllm": "0.32.0"}, "tokenizer": "base"}
    commit_json(run.sweep_json, sweep)
    part = built[0].parts["quiz"]
    commit_table(run.requests("quiz"), part.table)
    rows = part.table.to_pylist()
    answers = [scores(row["token_ids"], row["continuation_start"]) for row in rows]
    tokens = {
        "request_id": [row["request_id"] for row in rows],
        **schemas.place_columns("0.5", len(rows)),
        "logprobs": [logprobs for logprobs, _ in answers],
        "ranks": [[None] * len(top1) for _, top1 in answers],
        "top1_ids": [top1 for _, top1 in answers],
        "top1_logprobs": [logprobs for logprobs, _ in answers],
    }
    commit_table(run.unit("tokens", "quiz", "0.5", 0), pa.table(tokens, schema=schemas.TOKENS))
    record = {"file": f"lm-eval:{root / 'quiz.yaml'}", "shards": [[0, len(rows)]], "lambdas": ["0.5"], "shots": 0}
    commit_json(run.plan_json, {"tasks": {"quiz": record | {"documents": 4, "format": "lm-eval"}}})
    write_outcomes(run, harness, built, {}, read_plan(run))
    said: list[str] = []
    (path,) = write_lm_eval(run, analyse(run, resamples=20), root / "ours", WHEN, said.append)
    assert said == []
    return path.parent


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Find the files of a folder as lm-eval finds them; return the results and the samples of the only task."""
    from lm_eval.utils import (
        get_file_task_name,
        get_latest_filename,
        get_results_filenames,
        get_sample_results_filenames,
    )

    names = [str(path) for path in folder.iterdir()]
    samples = get_latest_filename(get_sample_results_filenames(names))
    assert get_file_task_name(Path(samples).name) == "quiz"
    lines = Path(samples).read_text(encoding="utf-8").splitlines()
    results = Path(get_latest_filename(get_results_filenames(names))).read_text(encoding="utf-8")
    return json.loads(results), [json.loads(line) for line in lines]


def test_folders_and_keys_are_those_of_lm_eval(ours: Path, theirs: Path) -> None:
    assert ours.name == theirs.name
    results, samples = read(ours)
    expected, rows = read(theirs)
    assert results.keys() == expected.keys()
    assert set(rows[0]) - set(samples[0]) == {"acc_norm"}  # tables do not know characters
    assert set(samples[0]) - set(rows[0]) == {"acc_tokens", "nll", "brier"}
    assert set(expected["results"]["quiz"]) <= set(results["results"]["quiz"])
    for key in ("n-shot", "n-samples", "model_name", "model_name_sanitized", "group_subtasks", "tokenizer_bos_token"):
        assert results[key] == expected[key], key
    assert results["lm_eval_version"] == expected["lm_eval_version"]
    assert results["config"].keys() >= expected["config"].keys()


def test_a_system_prompt_and_examples_as_turns_are_in_the_results(ours: Path, root: Path, tmp_path: Path) -> None:
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    keys = ("system_instruction", "system_instruction_sha", "fewshot_as_multiturn")
    assert [read(ours)[0][key] for key in keys] == [None, None, False]
    shutil.copytree(root / "run", tmp_path / "run")
    run = RunDir(tmp_path / "run")
    plan = run.plan()
    plan["tasks"]["quiz"] |= {
        "system_prompt": "Be brief.",
        "template": "lm-eval 0.4.13 multiple_choice; examples as turns",
        "shots": 2,
    }
    commit_json(run.plan_json, plan)
    (path,) = write_lm_eval(run, analyse(run, resamples=20), tmp_path / "ours", WHEN, lambda _: None)
    expected = GeneralConfigTracker()
    expected.log_experiment_args("lambdasweep", "", "Be brief.", "", True)
    results, _ = read(path.parent)
    assert [results[key] for key in keys] == [getattr(expected, key) for key in keys]


def test_numbers_are_those_of_lm_eval(ours: Path, theirs: Path) -> None:
    results, samples = read(ours)
    expected, rows = read(theirs)
    found, known = results["results"]["quiz"], expected["results"]["quiz"]
    for key in (
        "acc,none",
        "acc_norm,none",
        "acc_bytes,none",
        "acc_stderr,none",
        "acc_bytes_stderr,none",
        "sample_len",
    ):
        assert found[key] == pytest.approx(known[key], abs=1e-12), key
    assert 0 < known["acc,none"] + known["acc_bytes,none"] < 2
    assert len(samples) == len(rows) == len(ROWS)
    for sample, row in zip(samples, rows, strict=True):
        for key in ("doc_id", "target", "target_hash", "prompt_hash", "arguments", "filter", "acc", "acc_bytes"):
            assert sample[key] == row[key], key
        for mine, other in zip(sample["filtered_resps"], row["filtered_resps"], strict=True):
            assert float(mine[0]) == pytest.approx(float(other[0]), abs=1e-9)
            assert mine[1] == other[1]
        assert sample["resps"] == [[one] for one in sample["filtered_resps"]]


def test_metrics_beyond_lm_evals_are_the_runs_own(ours: Path, root: Path) -> None:
    results, samples = read(ours)
    metrics = analyse(RunDir(root / "run"), resamples=20).metrics.to_pylist()
    nlls = {row["confidence"]: row for row in metrics if (row["metric"], row["split"]) == ("nll", "all")}
    nll = nlls["sum"]
    assert results["results"]["quiz"]["nll,none"] == nll["value"]
    assert results["results"]["quiz"]["nll_bytes,none"] == nlls["bytes"]["value"] != nll["value"]
    assert np.mean([sample["nll"] for sample in samples]) == pytest.approx(nll["value"])
    error = np.std([sample["nll"] for sample in samples], ddof=1) / math.sqrt(len(samples))
    assert results["results"]["quiz"]["nll_stderr,none"] == pytest.approx(error)
    assert results["results"]["quiz"]["ece_width15_stderr,none"] == "N/A"
    assert results["higher_is_better"]["quiz"]["nll"] is False
    assert results["higher_is_better"]["quiz"]["acc_bytes"] is True


@pytest.mark.slow
def test_lm_eval_and_datasets_read_the_files(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from datasets import load_dataset
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.loggers.wandb_logger import WandbLogger
    from lm_eval.utils import make_table

    results, _ = read(ours)
    table = make_table(results)
    assert "|quiz" in table
    assert f"{results['results']['quiz']['acc_norm,none']:.4f}" in table
    logger = object.__new__(WandbLogger)
    logger.post_init(results)
    _, flat = logger._sanitize_results_dict()
    assert flat["quiz/ece_width15"] == results["results"]["quiz"]["ece_width15,none"]

    tracker, cards = EvaluationTracker(), []
    names = [f"{ours.name}/{path.name}" for path in ours.iterdir()]
    tracker.api = type("Hub", (), {"list_repo_files": lambda *_, **__: names})()
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo_id, filename, repo_type: str(ours.parent / filename))
    monkeypatch.setattr(huggingface_hub.DatasetCard, "push_to_hub", lambda card, *_, **__: cards.append(str(card)))
    tracker.recreate_metadata_card()
    assert f"config_name: {ours.name}__quiz" in cards[0]
    samples = next(path for path in ours.iterdir() if path.name.startswith("samples_"))
    assert load_dataset("json", data_files=str(samples), split="train").num_rows == len(ROWS)


def test_unfinished_and_unknown_documents_are_left_out_and_said(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    add_quiz(run, documents=6, grid=("0", "1"), scored=("0",))
    half = {r: [-1.0] for r in range(4)}
    add_task(run, "words", [1, 1], ["0", "1"])
    add_scores(run, "words", "0", {0: [-math.inf]}, top1={0: [5]})
    add_quarantine(run, "words", "0", [1])
    plan = run.plan()
    plan["tasks"]["quiz"]["shards"] = [[0, 6], [6, 12]]
    commit_json(run.plan_json, plan)
    add_scores(run, "quiz", "1", half)
    said: list[str] = []
    paths = write_lm_eval(run, analyse(run, resamples=20), tmp_path / "out", WHEN, said.append)
    assert [path.parent.name for path in paths] == ["here-lambda-0"]
    assert said[0].startswith("samples hold token ids in the place of texts: ")
    assert said[1] == "task quiz is not finished at λ = 0, 1 and left out there"
    (samples,) = [path for path in paths[0].parent.iterdir() if path.name.startswith("samples_")]
    (sample,) = map(json.loads, samples.read_text().splitlines())
    assert sample["arguments"] == {"gen_args_0": {"arg_0": [1, 2], "arg_1": [5]}}
    assert (sample["acc"], sample["nll"], sample["resps"]) == (1.0, None, [[["-inf", "True"]]])
    results = json.loads(paths[0].read_text())
    assert results["results"]["words"]["nll,none"] == "inf"
    assert results["n-samples"]["words"]["effective"] == 1
