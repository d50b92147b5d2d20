"""Tasks whose answers the model writes have lm-eval's own metrics on the same outputs, and rows of one's own are taken.

The tasks are YAML files over local JSON, and outputs are made up, so nothing is downloaded and no engine is started.
"""

import json
import re
import sys
import time
import types
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import EngineError, InputError, TaskError
from contract.records import TaskRecord, read_plan
from contract.rundir import RunDir
from contract.thinking import answer_part
from lambdasweep.config import load_config
from lambdasweep.tasks.answers import RowGrader, answers_of, think_end_problems
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.grading import answer_end, answer_start, graded_table, thinking_tokens, write_graded
from lambdasweep.tasks.lm_eval_tasks.grade import LmEvalGrader
from lambdasweep.tasks.lm_eval_tasks.load import load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.own_metrics import LEFT_OUT, write_outcomes
from lambdasweep.tasks.lm_eval_tasks.requests import BuiltLmEvalTask, build_answers, build_instances
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.normalise import NORMALISERS, is_right
from lambdasweep.tasks.tokens import load_tokenizer
from serve.engine import Engine
from serve.hooks.seeded_draws import Draw
from serve.sampling import cut
from serve.settings import Sampling
from tests.support.command_line import Result, write_task
from tests.support.lm_eval_inputs import cache_of_datasets, evaluated, write_yaml

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")

IDENTITY = {"base": "f", "aligned": "f"}
ROWS = [
    {"q": f"What is {a} and {b}?", "a": str(a + b), "also": [str(a + b), f"{a + b}.0"]}
    for a in range(4)
    for b in (2, 5)
]
SHOTS = [{"q": f"What is {a} and 1?", "a": str(a + 1), "also": [str(a + 1)]} for a in range(5)]

EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
SUMS: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_target": "{{a}}",
    "metric_list": [EXACT],
    "generation_kwargs": {"until": ["Question:", "\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12},
    "filter_list": [
        {
            "name": "strict",
            "filter": [{"function": "regex", "regex_pattern": "#### (\\d+)"}, {"function": "take_first"}],
        },
        {
            "name": "flexible",
            "filter": [
                {"function": "regex", "regex_pattern": "(\\d+)", "group_select": -1},
                {"function": "take_first"},
            ],
        },
    ],
}
SAMPLED = {"until": ["\n\n"], "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40}
_LAST = {"function": "regex", "regex_pattern": "(\\d+)", "group_select": -1}
TASKS: dict[str, dict[str, Any]] = {
    "sums": SUMS,
    "described": {**SUMS, "description": "Add.\n\n", "fewshot_delimiter": "\n--\n", "num_fewshot": 2},
    "aliases": {
        **SUMS,
        "doc_to_target": "also",
        "filter_list": [
            {"name": "bare", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
        ],
    },
    "voted": {
        **SUMS,
        "repeats": 5,
        "generation_kwargs": SAMPLED,
        "filter_list": [
            {"name": "first", "filter": [_LAST, {"function": "take_first"}]},
            *(
                {
                    "name": f"maj@{k}",
                    "filter": [
                        _LAST,
                        {"function": "take_first_k", "k": k},
                        {"function": "majority_vote"},
                        {"function": "take_first"},
                    ],
                }
                for k in (3, 5)
            ),
        ],
    },
    "bare": {key: value for key, value in SUMS.items() if key != "filter_list"},
}
OWN = """
def results(doc, results):
    words = results[0].split()
    return {"follows": len(words) > 2, "each": [doc["a"] in results[0], len(words) < 9]}

def share(items):
    flat = [one for item in items for one in item]
    return sum(flat) / len(flat)
"""


def made_up(prompt: str, sample: int) -> str:
    """Return an output that says the right number about two times in three, in different forms."""
    value = zlib.crc32(f"{prompt} {sample % 5}".encode())
    asked = re.findall(r"What is (\d) and (\d)", prompt)[-1]
    number = sum(map(int, asked)) if value % 3 else value % 9
    return [f"{number}", f" It is {number}.\n#### {number}", f"{number}", f"#### {number} or so", " no idea"][
        value // 9 % 5
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.checkpoints import write_tokenizer

    root = tmp_path_factory.mktemp("written")
    write_tokenizer(root / "tokenizer")
    for name, rows in (("rows", ROWS), ("shots", SHOTS)):
        (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in TASKS.items():
        write_yaml(root, name, settings)
    (root / "own_results.py").write_text(OWN)
    metrics = [
        {"metric": "follows", "aggregation": "mean", "higher_is_better": True},
        {"metric": "each", "aggregation": "SHARE", "higher_is_better": True},
    ]
    path = write_yaml(root, "own", {**TASKS["bare"], "metric_list": metrics})
    text = path.read_text().replace('"SHARE"', "!function own_results.share")
    path.write_text(text + "process_results: !function own_results.results\n")
    return root


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cache_of_datasets(tmp_path_factory.mktemp("datasets")):
        yield


@pytest.fixture(scope="module")
def peer(directory: Path) -> Callable[..., tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]]:
    """Evaluate a task with lm-eval's own evaluator on made-up outputs; returns its results, and what it asked for."""
    from lm_eval.api.model import LM

    class Fake(LM):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[str, dict[str, Any]]] = []

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            seen: Counter[str] = Counter()
            found = []
            for request in requests:
                prompt, settings = request.args
                self.asked.append((prompt, settings))
                found.append(made_up(prompt, seen[prompt] if settings.get("do_sample") else 0))
                seen[prompt] += 1
            return found

        def loglikelihood(self, requests: Any) -> Any:
            return [(-1.0 - request.idx, False) for request in requests]

        loglikelihood_rolling = loglikelihood

    def evaluate(source: str, shots: int | None = None, **more: Any) -> Any:
        model = Fake()
        found = evaluated(model, directory, tasks=[source], num_fewshot=shots, **more)
        return found["results"], model.asked

    return evaluate


def sweep(directory: Path, target: RunDir, spec: LmEvalSpec, out: tuple[int, ...] = ()) -> tuple[BuiltLmEvalTask, ...]:
    """Commit made-up outputs, and scores of choices, at λ = 0, then lm-eval's metrics and the grades of them."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    harness = load_lm_eval(spec)
    built, plan, graders = [], {}, {}
    parent = {"source": "p", "fingerprint": "f"}
    commit_json(target.sweep_json, {"pair": {"base": parent, "aligned": parent}, "engine": {}, "versions": {}})
    for task in harness.tasks:
        if task.outputs is None:
            one = build_instances(task, tokenizer, 64)
            (part,) = one.parts.values()
            entry = {"scored_as": part.scored_as}
            rows = part.table.to_pylist()
            columns = {
                "request_id": [row["request_id"] for row in rows],
                **schemas.place_columns("0", len(rows)),
                "logprobs": [
                    [-1.0 - row["choice"], *[0.0] * (len(row["token_ids"]) - row["continuation_start"] - 1)]
                    for row in rows
                ],
            }
            columns |= {"ranks": [[2] * len(one) for one in columns["logprobs"]], "top1_logprobs": columns["logprobs"]}
            columns["top1_ids"] = [[None] * len(one) for one in columns["logprobs"]]
            commit_table(target.unit("tokens", task.name, "0", 0), pa.table(columns, schema=schemas.TOKENS))
        else:
            one, spec_of = build_answers(task, tokenizer, (1,))
            (part,) = one.parts.values()
            entry = {"scored_as": "answers", "samples": spec_of.samples, "metric": spec_of.metric}
            rows = [row for row in part.table.to_pylist() if row["request_id"] not in out]
            texts = [(row, made_up(row["prompt"], sample), sample) for row in rows for sample in range(spec_of.samples)]
            ids = [tokenizer([text])["input_ids"][0] for _, text, _ in texts]
            columns = {
                "request_id": [row["request_id"] for row, _, _ in texts],
                "sample": [sample for _, _, sample in texts],
                **schemas.place_columns("0", len(texts)),
                "seed": [7] * len(texts),
                "token_ids": ids,
                "text": [text for _, text, _ in texts],
                "finish_reason": ["stop"] * len(texts),
                **{name: [[0.0] * len(one) for one in ids] for name in ("logprobs", "top1_logprobs", "entropies")},
                **{name: [[1] * len(one) for one in ids] for name in ("ranks", "top1_ids")},
            }
            commit_table(target.unit("generations", task.name, "0", 0), pa.table(columns, schema=schemas.GENERATIONS))
            if out:
                bad = {"request_id": list(out), "reason": ["too long"] * len(out)}
                commit_table(target.unit("quarantine", task.name, "0", 0), pa.table(bad, schema=schemas.QUARANTINE))
            graders[task.name] = (part, LmEvalGrader(task))
        commit_table(target.requests(task.name), part.table)
        plan[task.name] = {"shards": [[0, len(part.table)]], "lambdas": ["0"], **entry}
        built.append(one)
    commit_json(target.plan_json, {"tasks": plan})
    write_outcomes(target, harness, built, IDENTITY, read_plan(target))
    for name, (part, grader) in graders.items():
        write_graded(target, name, part, grader, IDENTITY, read_plan(target))
    return tuple(built)


def outcomes(run: RunDir, name: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in run_table(run, name).to_pylist():
        found.setdefault(row["task"], {})[row["metric"]] = row["value"]
    return found


def run_table(run: RunDir, name: str) -> pa.Table:
    from contract.location import read_table

    return read_table(run.outcomes(name))


def theirs(results: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in results.items() if "," in key and "_stderr" not in key}


@pytest.mark.parametrize(
    ("name", "shots"),
    [*((name, None) for name in [*TASKS, "own"]), ("sums", 3), ("voted", 2)],
)
def test_metrics_and_prompts_are_those_of_lm_eval(
    name: str, shots: int | None, directory: Path, peer: Callable[..., Any], tmp_path: Path
) -> None:
    expected, asked = peer(name, shots)
    run = RunDir(tmp_path / "run")
    (built,) = sweep(directory, run, LmEvalSpec(str(directory / f"{name}.yaml"), shots=shots))
    found = outcomes(run, name)[name]
    assert found.pop(LEFT_OUT) == 0
    assert found == theirs(expected[name])
    assert len(found) >= (3 if name == "voted" else 1)
    assert name == "own" or 0 < max(found.values()) < 1
    repeats = built.source.outputs.repeats if built.source.outputs else 0
    prompts = built.parts[name].table["prompt"].to_pylist()
    assert [prompt for prompt, _ in asked] == [prompt for prompt in prompts for _ in range(repeats)]
    tokenizer = load_tokenizer(directory / "tokenizer")
    assert built.parts[name].table["token_ids"].to_pylist() == [tokenizer([one])["input_ids"][0] for one in prompts]


def test_single_outputs_are_graded(directory: Path, tmp_path: Path) -> None:
    """lm-eval's first filter and exact_match decide; filters that need several outputs are passed over."""
    run = RunDir(tmp_path / "run")
    sweep(directory, run, LmEvalSpec(str(directory / "voted.yaml")))
    prompts = [f"Question: {row['q']}\nAnswer:" for row in ROWS]
    rows = run.graded("voted", "0").to_pylist()
    assert len(rows) == 5 * len(ROWS)
    answers = load_tokenizer(directory / "tokenizer")
    for row in rows:
        text = made_up(prompts[row["request_id"]], row["sample"])
        digits = [one for one in text if one.isdigit()]
        answer = digits[-1] if digits else "[invalid]"
        assert (row["answer"], row["correct"]) == (answer, answer == ROWS[row["request_id"]]["a"])
        assert row["metrics"] == [("exact_match,first", float(row["correct"]))]
        token = answers([text])["input_ids"][0][row["answer_start"]]
        assert answer[0] in answers.decode([token]) or not digits
    assert 0 < sum(row["correct"] for row in rows) < len(rows)
    assert run.plan()["tasks"]["voted"]["metric"] == "exact_match,first"


def test_what_is_in_quarantine_is_left_out(directory: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    sweep(directory, run, LmEvalSpec(str(directory / "sums.yaml")), out=(2, 5))
    table = run_table(run, "sums").to_pylist()
    assert {row["metric"]: row["n"] for row in table} == {
        LEFT_OUT: len(ROWS),
        "exact_match,strict": len(ROWS) - 2,
        "exact_match,flexible": len(ROWS) - 2,
    }
    assert {row["request_id"] for row in run.graded("sums", "0").to_pylist()} == set(range(len(ROWS))) - {2, 5}


def test_a_group_of_choices_and_answers_is_one(
    directory: Path, peer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    init = tasks.TaskManager.__init__
    monkeypatch.setattr(
        tasks.TaskManager, "__init__", lambda self, **some: init(self, **(some | {"include_defaults": False}))
    )
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{also.index(a)}}",
        "doc_to_choice": "{{[a, 'none']}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write_yaml(directory, "picked", choice)
    path = directory / "mixed.yaml"
    weights = [{"metric": "acc", "weight_by_size": True}]
    path.write_text(yaml.safe_dump({"group": "mixed", "task": ["picked", "sums"], "aggregate_metric_list": weights}))
    run = RunDir(tmp_path / "run")
    built = sweep(directory, run, LmEvalSpec(str(path)))
    expected, _ = peer("mixed")
    found = outcomes(run, "mixed")
    assert found.keys() == {"picked", "sums", "mixed"}
    for name, values in found.items():
        assert {key: value for key, value in values.items() if "," in key} == theirs(expected[name])
    assert [task.source.groups for task in built] == [("mixed",)] * 2


def test_flags_take_the_place_of_what_a_task_says(directory: Path, peer: Callable[..., Any], tmp_path: Path) -> None:
    path = str(directory / "sums.yaml")
    (task,) = load_lm_eval(LmEvalSpec(path)).tasks
    assert task.outputs is not None
    assert asdict(task.outputs) == {
        "repeats": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 12,
        "until": ("Question:", "\n\n"),
        "normaliser": "auto",
        "metric": "exact_match,strict",
        "filters": ("strict", "flexible"),
        "equivalence": None,
        "think_end_token": None,
        "p_true": None,
        "verbalised": None,
    }
    spec = LmEvalSpec(path, repeats=3, temperature=0.5, max_tokens=7)
    (task,) = load_lm_eval(spec).tasks
    assert task.outputs is not None
    assert (task.outputs.samples, task.outputs.temperature, task.outputs.max_tokens) == (3, 0.5, 7)
    _, asked = peer("sums", gen_kwargs={"do_sample": True, "temperature": 0.5, "max_gen_toks": 7})
    assert asked[0][1] == task.asked[0].instances[0].args[1]
    (task,) = load_lm_eval(LmEvalSpec(path, until="END\\n")).tasks
    assert task.outputs is not None
    assert task.outputs.until == ("END\n",)
    _, asked = peer("sums", gen_kwargs={"until": ["END\n"]})
    assert asked[0][1] == task.asked[0].instances[0].args[1]
    run = RunDir(tmp_path / "run")
    sweep(directory, run, spec)
    assert len(run.graded("sums", "0")) == 3 * len(ROWS)
    (task,) = load_lm_eval(LmEvalSpec(str(directory / "voted.yaml"))).tasks
    assert task.outputs is not None
    assert (task.outputs.samples, task.outputs.top_p, task.outputs.top_k, task.outputs.max_tokens) == (5, 0.9, 40, 256)


def test_greedy_outputs_are_made_once(directory: Path, peer: Callable[..., Any], tmp_path: Path) -> None:
    """lm-eval's filters still get as many as they ask for, all the same."""
    spec = LmEvalSpec(str(directory / "voted.yaml"), temperature=0)
    loaded = load_lm_eval(spec)
    assert loaded.tasks[0].outputs is not None
    assert (loaded.tasks[0].outputs.samples, loaded.tasks[0].outputs.repeats) == (1, 5)
    assert loaded.warnings == (
        "task voted: at temperature 0 all 5 samples are the same, so one is made: give --temperature",
    )
    run = RunDir(tmp_path / "run")
    sweep(directory, run, spec)
    expected, _ = peer("voted", gen_kwargs={"do_sample": False, "temperature": 0.0})
    assert {key: value for key, value in outcomes(run, "voted")["voted"].items() if "," in key} == theirs(
        expected["voted"]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"repeats": 2}, "odd: lm-eval cannot make metrics of 2 outputs (AssertionError: Need at least 3"),
        ({"generation_kwargs": {**SAMPLED, "num_beams": 4}}, "odd has num_beams in its generation_kwargs"),
        (
            {"generation_kwargs": {**SAMPLED, "temperature": 0.001}},
            "odd: temperature is 0.001: give 0, or 0.01 or more",
        ),
        ({"metric_list": [{**EXACT, "metric": "acc"}]}, "ValueError: no metric of a single output is a number"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_sampled(
    directory: Path, settings: dict[str, Any], says: str
) -> None:
    path = write_yaml(directory, "odd", {**TASKS["voted"], **settings})
    with pytest.raises(TaskError) as caught:
        load_lm_eval(LmEvalSpec(str(path)))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{'4': 1.0} if int(doc['a']) < 3 else {'8': 1.0}", "has no number 4"),
        ("{'4': 1.0, '8': -1.0} if int(doc['a']) < 3 else {'4': -1.0, '8': 1.0}", "has 4 -1"),
    ],
)
def test_documents_with_metrics_of_their_own_are_refused(body: str, says: str, directory: Path, tmp_path: Path) -> None:
    """RULER's are so: by the first document's metric, whatever is written of some others would be wrong."""
    own = {key: value for key, value in TASKS["bare"].items() if key != "metric_list"}
    path = write_yaml(directory, "ruled", own)
    (directory / "ruled.py").write_text(f"def results(doc, results):\n    return {body}\n")
    metrics = "".join(f"- {{metric: '{key}', aggregation: mean, higher_is_better: true}}\n" for key in "48")
    path.write_text(path.read_text() + f"process_results: !function ruled.results\nmetric_list:\n{metrics}")
    with pytest.raises(TaskError) as caught:
        load_lm_eval(LmEvalSpec(str(path)))
    assert "ruled: outputs would be right where 4 is 1, and document" in str(caught.value)
    assert f"{says}: give a task whose documents have one metric" in str(caught.value)


def test_a_text_is_cut_as_lm_eval_cuts_it() -> None:
    from lm_eval.models.utils import postprocess_generated_text

    texts = ["", "a\n\nb", "stop", "a stop b\n\nc stop", "\n\n", "no end"]
    for until in ([], ["\n\n"], ["stop", "\n\n"], ["", "b"], ["\n\nc", "stop"]):
        for text in texts:
            assert cut(text, until) == postprocess_generated_text(text, until, None)


THOUGHTS = [
    "",
    "no thoughts",
    "hm</think>\n\n 7 is it",
    "a</think> b </think>\n7\n\nmore",
    "all thoughts\n\nand more</think>",
    "</think>7",
    "unended\n\n7",
]


def test_an_answer_after_thinking_is_that_of_lm_eval(directory: Path) -> None:
    from lm_eval.models.utils import postprocess_generated_text

    tokenizer = load_tokenizer(directory / "tokenizer")
    for text in THOUGHTS:
        ids = tokenizer([text])["input_ids"][0]
        for until in ([], ["\n\n"], ["is", "\n"]):
            part = answer_part(ids, tokenizer.decode, "</think>")
            assert cut(part.text, until) == postprocess_generated_text(text, until, "</think>")
            assert part.is_after == ("</think>" in text)
            assert tokenizer.decode(ids)[part.offset :] == part.text
    # The end of thinking is the id of a token, as in lm-eval's hf model. The answer is what follows the last one,
    # stripped in front.
    ids = tokenizer(["hm z a z  so 7"])["input_ids"][0]
    (end,) = tokenizer([" z"])["input_ids"][0]
    assert ids.count(end) == 2
    part = answer_part(ids, tokenizer.decode, str(end))
    assert (part.text, part.is_after) == ("so 7", True)
    assert tokenizer.decode(ids[part.first :])[part.offset :] == "so 7"
    assert answer_part(ids, tokenizer.decode, "9999").text == "hm z a z  so 7"
    assert answer_part(ids, tokenizer.decode, None).text == tokenizer.decode(ids)


def test_tokens_of_thinking_are_counted_and_an_answer_is_found_behind_them(directory: Path) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer")
    text = "is it 7 or 8</think>\n it is 7"
    ids = tokenizer([text])["input_ids"][0]
    before = thinking_tokens(tokenizer, ids, "</think>")
    assert tokenizer.decode(ids[:before]).rstrip() == "is it 7 or 8</think>"
    assert tokenizer.decode(ids[before:]).lstrip() == "it is 7"
    at = answer_start(tokenizer, ids, "it is 7", "7", None, "</think>")
    assert tokenizer.decode(ids[at]).strip() == "7"
    assert at == len(ids) - 1
    assert answer_start(tokenizer, ids, "it is 7", "", None, "</think>") == before
    for none, count in (("no thoughts", 0), (" unended", 0), ("all of it</think>", None)):
        ids = tokenizer([none])["input_ids"][0]
        assert thinking_tokens(tokenizer, ids, "</think>") == (len(ids) if count is None else count)


def test_an_answer_behind_thoughts_ends_where_the_engine_would_have_ended_it(directory: Path) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer")
    until = ("Question:", "\n\n", "</s>")
    for text, cut_text, end in (
        ("\n\nis it</think>\n it is 7 Question: is 8\n\nno", "it is 7 ", "\n\nis it</think>\n it is 7 Question:"),
        ("is it</think> 7\n\n8\n\n", "7", "is it</think> 7\n\n"),
        ("</think>Question: 7", "", "</think>Question:"),
        ("unended\n\n7", "unended", "unended\n\n"),
        ("is it</think> it is 7", "it is 7", None),
        ("all of it</think>", "", None),
    ):
        ids = tokenizer([text])["input_ids"][0]
        at = answer_end(tokenizer, ids, cut_text, until, "</think>")
        if end is None:
            assert at is None
        else:
            assert at is not None
            assert len(tokenizer.decode(ids[:at])) < len(end) <= len(tokenizer.decode(ids[: at + 1]))


def test_the_end_of_an_answer_is_kept_only_where_thoughts_come_before_it(directory: Path) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer")
    ids = tokenizer(["is it</think> 7\n\n8"])["input_ids"][0]
    outputs = pa.table({"request_id": [0], "sample": pa.array([0], pa.int16()), "token_ids": [ids], "text": ["7"]})
    grader = RowGrader((("7",),), "auto")
    table = graded_table(outputs, "0", grader, tokenizer, "</think>", ("\n\n",))
    assert table.schema == schemas.GRADED
    (at,) = table["answer_end"].to_pylist()
    assert tokenizer.decode(ids[: at + 1]).endswith("7\n\n")
    assert graded_table(outputs, "0", grader, tokenizer, None, ("\n\n",)).column_names == [
        name for name in schemas.GRADED.names if name != "answer_end"
    ]


@pytest.mark.parametrize(
    ("think_end_token", "says"),
    [
        ("</think>", None),
        ("²", None),  # this is a digit, and no number
        ("2", None),
        ("", "think_end_token is '': give a text that ends thinking, or the id of a token"),
        (
            "99999",
            "think_end_token is '99999', and the tokenizer has no token with this id: give the id of one, or a text",
        ),
        (
            "</s>",
            "think_end_token is '</s>', and the texts of outputs have no special tokens: give 1, the id of the token",
        ),
        (
            "<s>end</s>",
            "think_end_token is '<s>end</s>', and the texts of outputs have no special tokens: give 1, the id of the token",
        ),
    ],
)
def test_an_end_of_thinking_that_no_output_has_is_refused(
    think_end_token: str, says: str | None, directory: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer")
    assert think_end_problems(think_end_token, tokenizer) == ([] if says is None else [says])
    assert think_end_problems(None, tokenizer) == []
    file = write_task(tmp_path / "quiz.jsonl", *QUIZ)
    rows = read_documents(TaskSpec("quiz", file, format="generate", think_end_token=think_end_token))
    (task,) = load_lm_eval(LmEvalSpec(str(directory / "sums.yaml"), think_end_token=think_end_token)).tasks
    if says is None:
        ids = tokenizer([f"a {think_end_token} b"])["input_ids"][0]
        assert answers_of(rows, tokenizer, ())[0].think_end_token == think_end_token
        assert build_answers(task, tokenizer, ())[1].think_end_token == think_end_token
        assert answer_part(ids, tokenizer.decode, think_end_token).is_after is not think_end_token.isdecimal()
        return
    for build in (lambda: answers_of(rows, tokenizer, ()), lambda: build_answers(task, tokenizer, ())):
        with pytest.raises(TaskError) as refused:
            build()
        assert list(refused.value.problems) == [says]


@pytest.mark.parametrize(("think_end_token", "stop"), [(None, ["Question:", "</s>"]), ("</think>", [])])
def test_texts_in_thoughts_end_no_output(
    think_end_token: str | None, stop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only end tokens end an output of a model that thinks, as in lm-eval's vllm model."""
    asked: list[dict[str, Any]] = []
    vllm = types.ModuleType("vllm")
    vllm.SamplingParams = lambda **given: asked.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    engine = object.__new__(Engine)
    nothing: Any = types.SimpleNamespace(generate=lambda *_, **__: 1 / 0, llm_engine=types.SimpleNamespace())
    nothing.llm_engine.output_processor = types.SimpleNamespace(tokenizer=None)
    engine._llm = nothing
    sampling = Sampling(1, 0.0, 8, (1,), until=("Question:", "</s>"), think_end_token=think_end_token)
    with pytest.raises(EngineError):
        engine.sample([Draw((1, 2), 7)], sampling, tokenizer=object())
    assert (asked[0]["stop"], asked[0]["stop_token_ids"]) == (stop, [1])


@pytest.mark.parametrize(
    ("normaliser", "text", "answer", "answer_class"),
    [
        ("exact", " The  Cat. ", "The  Cat.", "The  Cat."),
        ("squad", " The  Cat. ", "The  Cat.", "cat"),
        ("number", "so 3 + 4 = 1,007.50 dollars.", "1,007.50", "1007.5"),
        ("number", "it is -0", "-0", "0"),
        ("number", "no idea", "", ""),
        ("number", "$5.", "5", "5"),
        ("number", "The answer is −5", "−5", "-5"),
        ("number", "on pages 10-12", "12", "12"),
        ("number", "Apollo-11", "11", "11"),
        ("number", "5-(-3)", "-3", "-3"),
        ("number", "about 1.5e-3", "1.5e-3", "0.0015"),
        ("number", "1.000.000", "1.000.000", "1.000.000"),  # it may be a million, or a version
        ("number", "it is 1/2.", "1/2", "0.5"),
        ("number", "it is -4/6", "-4/6", "-2/3"),
        ("number", "on 12/05/2020", "2020", "2020"),
        ("number", "3 1/2 cups", "3 1/2", "3.5"),
        ("number", "2/1,000", "1,000", "1000"),
        ("number", "_-5_", "-5", "-5"),
        ("number", "-$5", "-$5", "-5"),
        ("number", "at 12/05", "05", "5"),
        ("letter", "The answer is (b).", "b", "B"),
        ("letter", "C. because A is wrong", "C", "C"),
        ("letter", "I'd take option D", "D", "D"),
        ("letter", "none of them", "", ""),
        ("letter", "The answer is a bit tricky, but (C)", "C", "C"),
        ("letter", "Answer: I think it's B", "B", "B"),
        ("letter", "the answer is a.", "a", "A"),
        ("letter", "(b)", "b", "B"),
        ("letter", "The answer is A because B is wrong.", "A", "A"),
        ("letter", "The answer is B because A is wrong.", "B", "B"),
        ("letter", "The answer is **B**. Option A is too small.", "B", "B"),
        ("letter", "**Answer:** option (C), not D", "C", "C"),
        ("letter", "The answer is B, because answer C is wrong.", "B", "B"),
        ("letter", "I think it is C.", "C", "C"),
        ("letter", "A because B is too small", "A", "A"),
        ("letter", "A small one, hence B", "B", "B"),
        ("letter", "A small one", "", ""),
        ("letter", "Answer: I", "I", "I"),
        ("auto", " -5 ", "-5", "-5"),
        ("auto", "$1,000", "$1,000", "1000"),
        ("auto", "The cat", "The cat", "cat"),
        ("auto", "−5", "−5", "-5"),
        ("auto", "- $5", "- $5", "-5"),
        ("auto", "1/2", "1/2", "0.5"),  # SQuAD's would be 12
    ],
)
def test_normalisers(normaliser: str, text: str, answer: str, answer_class: str) -> None:
    found = NORMALISERS[normaliser](text)
    assert (found.answer, found.answer_class) == (answer, answer_class)


@pytest.mark.parametrize(
    "form",
    [
        "\\boxed{%s}",
        "The answer is \\boxed{\\text{%s}}.",
        "The answer is $%s$",
        "Answer: {%s}",
        "%s - Paris",
        "**%s** Paris",
        "[%s] Paris",
        "Answer: %s Paris",
        "Answer: **Option %s** – Paris",
        "<answer>%s</answer>",
        '{"answer": "%s"}',
        "%s</s>",
        "Option %s matches best",
        "%s seems right",
        "Answer %s. C is wrong",
        "Answer (%s). C is wrong",
        "The answer is %s because C is wrong.",
        "Answer:\n\n%s",
    ],
)
def test_no_letter_is_found_more_easily_than_another(form: str) -> None:
    """Accuracy would change with the share of the questions whose right choice is A, which is a word, too."""
    assert [NORMALISERS["letter"](form % letter).answer_class for letter in "AB"] == ["A", "B"]


@pytest.mark.parametrize(
    "text",
    [
        "the answer is" + "\n" * 30_000,
        "answer is " * 4000,
        "*" * 30_000,
        "A " * 15_000,
        "1.000" + ".000" * 8000,
        "0." + "3" * 30_000,
        "1/" * 15_000,
        "answer is:" + " " * 30_000 + "x",
    ],
    ids=lambda text: text[:12],
)
def test_long_outputs_are_read_in_linear_time(text: str) -> None:
    """Doubled, they take about twice as long; the bound is that of quadratic time with room for a busy machine."""

    def seconds(output: str) -> float:
        begun = time.process_time()
        for kind in ("letter", "number", "auto"):
            NORMALISERS[kind](output)
        return time.process_time() - begun

    assert seconds(text) < 2 + 20 * seconds(text[: len(text) // 8])


def test_an_answer_is_right_by_its_class() -> None:
    assert is_right(NORMALISERS["number"]("it is 12.0"), ["12", "13"], "number")
    assert not is_right(NORMALISERS["number"]("it is 14"), ["12", "13"], "number")
    # An output without an answer is never right.
    assert not is_right(NORMALISERS["number"]("nothing"), ["none"], "number")
    grades = RowGrader((("Paris", "the city of light"),), "squad").grade(
        [(0, " paris. "), (0, "Rome"), (0, "City of Light")]
    )
    assert [(grade.answer, grade.correct, grade.metrics["exact_match"]) for grade in grades] == [
        ("paris.", True, 1.0),
        ("Rome", False, 0.0),
        ("City of Light", True, 1.0),
    ]


def test_where_an_answer_begins(directory: Path) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer")
    text = "it is 7, so 17 or the A end"
    ids = tokenizer([text])["input_ids"][0]
    for answer in ("17", "end", "the A", "it"):
        at = answer_start(tokenizer, ids, text, answer)
        assert len(tokenizer.decode(ids[:at])) <= text.rfind(answer) < len(tokenizer.decode(ids[: at + 1]))
    assert answer_start(tokenizer, ids, text, "nowhere") == 0
    assert answer_start(tokenizer, ids, text, "") == 0


QUIZ = [
    {"prompt": "The capital of France is", "answers": ["Paris", "Paris "], "id": "fr"},
    {"prompt": "2 + 2 =\n", "answers": ["4"], "id": "sum"},
    {"prompt": "Say yes.", "answers": ["yes"], "id": "yes"},
]


def test_rows_become_prompts(directory: Path, tmp_path: Path) -> None:
    path = write_task(tmp_path / "quiz.jsonl", *QUIZ)
    tokenizer = load_tokenizer(directory / "tokenizer")
    spec = TaskSpec("quiz", path, format="generate", shots=1, seed=3, repeats=4, temperature=0.5, until="END\\n")
    file = read_documents(spec)
    settled, built, grader = answers_of(file, tokenizer, (7,))
    assert (settled.samples, settled.temperature, settled.max_tokens, settled.metric) == (4, 0.5, 256, "exact_match")
    assert settled.until == ("END\n", "</s>")
    assert built.stop_token_ids == (1, 7)
    (shot,) = [row for row in QUIZ if row["id"] not in built.table["doc_id"].to_pylist()]
    front = shot["prompt"] + ("" if shot["prompt"].endswith("\n") else " ") + shot["answers"][0] + "\n\n"
    rest = [row for row in QUIZ if row is not shot]
    assert built.table["prompt"].to_pylist() == [front + row["prompt"] for row in rest]
    assert built.table["token_ids"].to_pylist() == [tokenizer([front + row["prompt"]])["input_ids"][0] for row in rest]
    assert grader.answers == tuple(tuple(dict.fromkeys(one.strip() for one in row["answers"])) for row in rest)
    default, _, _ = answers_of(replace(file, spec=replace(spec, until=None)), tokenizer, ())
    assert default.until == ("\n\n", "</s>")
    greedy, warned, _ = answers_of(
        replace(file, spec=replace(spec, shots=0, until=None, temperature=None)), tokenizer, ()
    )
    assert (greedy.samples, greedy.until) == (1, ("</s>",))
    assert "at temperature 0 all 4 samples are the same" in warned.warnings[0]


def test_right_answers_of_several_numbers_are_warned_of(directory: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answers": [answer]} for answer in ("1/2", "10-12", "5 apples", "3 + 4 = 7 #### 7")]
    path = write_task(tmp_path / "quiz.jsonl", *rows)
    file = read_documents(TaskSpec("quiz", path, format="generate", normaliser="number"))
    _, built, _ = answers_of(file, load_tokenizer(directory / "tokenizer"), ())
    assert built.warnings == (
        "task quiz: 2 right answers have several numbers, of which the normaliser takes the last: '10-12' of 2 is the first",
    )


def test_bad_rows_are_all_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "x"},
        {"prompt": 3, "answers": ["y"]},
        {"prompt": "x", "answers": []},
        {"prompt": "x", "answers": [" "]},
    ]
    path = write_task(tmp_path / "quiz.jsonl", *rows)
    with pytest.raises(TaskError) as caught:
        read_documents(TaskSpec("quiz", path, format="generate", temperature=-1))
    assert list(caught.value.problems) == [
        "temperature is -1: give 0, or 0.01 or more",
        "line 1: has no answers: the generate format needs prompt and a list of answers",
        "line 2: prompt is of type number: give a string",
        "line 3: answers is empty: give a list of one string or more",
        "line 4: answer 0 is empty: there is nothing to score",
    ]


# The command line


def test_rows_without_an_answer_are_named_by_their_lines_in_all_tasks(
    refused: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [{"prompt": "x", "answers": ["4"], "id": "first"}, {"prompt": "y", "answers": ["four"], "id": "second"}]
    files = {name: write_task(tmp_path / f"{name}.jsonl", *rows) for name in ("a", "b")}
    tasks = [f"{name}={file}:generate" for name, file in files.items()]
    assert refused(task=tasks, normaliser="number").problems == [
        f"task '{name}' cannot be built from {file}: line 2: the normaliser number finds no answer in ['four'], so that no "
        "output could be right: mend the answers, or give another --normaliser"
        for name, file in files.items()
    ]


def test_a_sweep_of_answers_is_planned_and_recorded(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[dict[str, Any]],
    directory: Path,
    tmp_path: Path,
) -> None:
    quiz = write_task(tmp_path / "quiz.jsonl", *QUIZ)
    asked = flags(
        task=f"quiz={quiz}:generate", repeats=4, temperature=0.7, max_tokens=8, normaliser="exact", generate=None
    )
    asked += ["--task", f"lm-eval:{directory / 'sums.yaml'}"]
    planned = lambdasweep("plan", *asked)
    assert planned.code == 0, planned.err
    tasks = [line for line in planned.out.splitlines() if line.startswith("task")]
    assert tasks[0].startswith("task      quiz: 3 documents, ")
    assert tasks[0].endswith("(generate, 0 shots, 4 answers of at most 8 tokens, temperature 0.7)")
    assert tasks[1].startswith(f"task      sums: {len(ROWS)} documents, ")
    assert "units     6 to do of 6 (3 λ)" in planned.out
    assert lambdasweep("run", *asked).code == 0
    run = RunDir(tmp_path / "run")
    plan = read_plan(run)
    assert isinstance(plan["quiz"], TaskRecord)
    assert plan["quiz"].is_answered
    assert (plan["quiz"].samples, plan["quiz"].normaliser, plan["quiz"].metric) == (4, "exact", "exact_match")
    assert (plan["sums"].until, plan["sums"].max_tokens) == (("Question:", "\n\n", "</s>"), 8)
    assert [unit.key[:2] for unit in handed[-1]["units"]] == [
        (name, lam) for name in ("quiz", "sums") for lam in ("0", "0.5", "1")
    ]
    source = handed[-1]["sources"]["sums"] if "sources" in handed[-1] else None
    if source is not None:
        assert source.sampling.until == ("Question:", "\n\n", "</s>")
    status = lambdasweep("status", run.root).out
    assert (
        "quiz: 0/3 units, 3 documents × 3 λ (generate, 0 shots, 4 answers of at most 8 tokens, temperature 0.7)"
        in status
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"repeats": 5}, "task quiz: samples was 4 and is 5 now"),
        ({"temperature": 0.5}, "task quiz: temperature was 0.7 and is 0.5 now"),
        ({"normaliser": "exact"}, 'task quiz: normaliser was "auto" and is "exact" now'),
        ({"until": "x"}, 'task quiz: until was ["</s>"] and is ["x", "</s>"] now'),
    ],
)
def test_what_is_asked_of_answers_cannot_change(
    lambdasweep: Callable[..., Result],
    refused: Callable[..., Result],
    flags: Callable[..., list[object]],
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    quiz = write_task(tmp_path / "quiz.jsonl", *QUIZ)
    asked = {"task": f"quiz={quiz}:generate", "repeats": 4, "temperature": 0.7}
    assert lambdasweep("run", *flags(**asked)).code == 0
    assert says in refused(**asked | changes).problems


def test_a_sweep_keeps_the_shards_that_it_was_begun_with(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its committed tables are of these; a version that cuts otherwise would leave rows out, or write them twice."""
    quiz = write_task(tmp_path / "quiz.jsonl", *QUIZ)
    rows = write_task(
        tmp_path / "rows.jsonl", *({"query": f"{n}?", "choices": ["a", "b"], "gold": 0} for n in range(9))
    )
    asked = {"task": f"quiz={quiz}:generate", "repeats": 4, "temperature": 0.7, "lambdas": "0,1"}
    with monkeypatch.context() as older:
        older.setattr("lambdasweep.prepare.prompt_shards", lambda costs, *_: [(0, 1), (1, len(costs))])
        older.setattr("lambdasweep.prepare.shards", lambda table, _: [(0, 4), (4, len(table))])
        assert lambdasweep("run", *flags(**asked), "--task", f"rows={rows}").code == 0
    before = read_plan(RunDir(tmp_path / "run"))
    assert [len(before[name].shards) for name in ("quiz", "rows")] == [2, 2]
    planned = lambdasweep("plan", *flags(**asked | {"lambdas": "0,0.5,1"}), "--task", f"rows={rows}")
    assert "units     12 to do of 12 (3 λ)" in planned.out
    assert lambdasweep("run", *flags(**asked | {"lambdas": "0,0.5,1"}), "--task", f"rows={rows}").code == 0
    cut = {(unit.task, unit.lam): [] for unit in handed[-1]["units"]}
    for unit in handed[-1]["units"]:
        cut[unit.task, unit.lam].append((unit.first_row, unit.end_row, unit.cost))
    after = read_plan(RunDir(tmp_path / "run"))
    for name in ("quiz", "rows"):
        assert (after[name].shards, after[name].costs) == (before[name].shards, before[name].costs)
        expected = [(*rows, cost) for rows, cost in zip(before[name].shards, before[name].costs, strict=True)]
        assert cut[name, "0.5"] == expected


def test_settings_of_answers_need_answers(refused: Callable[..., Result]) -> None:
    result = refused(repeats=4, temperature=0.7)
    assert "--repeats, --temperature: no task has answers that the model writes" in result.err
    with pytest.raises(InputError):
        read_documents(TaskSpec("quiz", Path("nowhere.jsonl"), format="generate"))


def test_a_task_of_another_format_says_nothing_of_written_answers(tmp_path: Path) -> None:
    """A row of a settings file that says it is a mistake; a setting of all tasks at once is none."""
    file = tmp_path / "sweep.toml"
    head = 'base = "a"\naligned = "b"\nlambdas = "0,1"\nout = "o"\nrepeats = 2\n'
    rows = (
        '[[task]]\nname = "one"\nfile = "one.jsonl"\nrepeats = 4\ntemperature = 0.5\n'
        '[[task]]\nname = "two"\nfile = "two.jsonl"\nformat = "generate"\nuntil = "x"\n'
        '[[task]]\nfile = "lm-eval:gsm8k"\nuntil = "y"\n[[task]]\nname = "four"\nfile = "four.jsonl"\n'
    )
    file.write_text(head + rows)
    with pytest.raises(InputError) as refused:
        load_config({}, [], [], [], file)
    assert refused.value.problems == (
        f"{file}: [[task]] 1 (one): repeats, temperature are about answers that the model writes, and its format is cloze: "
        "leave them out, or give format generate",
    )
    with pytest.raises(InputError) as refused:
        load_config({"format": "letters"}, [], [], [], file)  # flags win over the file
    assert [problem.split(": ")[1] for problem in refused.value.problems] == ["[[task]] 1 (one)", "[[task]] 2 (two)"]
    file.write_text(f'format = "generate"\n{head}{rows}')
    found = load_config({}, [], [], [], file).tasks
    assert [(one.repeats, one.until) for one in found] == [(4, None), (2, "x"), (2, "y"), (2, None)]
