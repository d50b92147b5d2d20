"""lm-eval's tasks have the requests of its own evaluator, and from the same scores its metrics.

A fake model gives every token a log-probability that is a function of the tokens up to it. lm-eval's `simple_evaluate` asks
it its way; our tables are filled with the same numbers. The tasks are YAML files over local JSON, so nothing is downloaded.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.errors import InputError, LambdasweepError, TaskError
from contract.records import read_plan
from contract.rundir import RunDir
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTasks, load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.own_metrics import LEFT_OUT, write_outcomes
from lambdasweep.tasks.lm_eval_tasks.requests import BuiltLmEvalTask, build_instances
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.lm_eval_inputs import (
    CHOICE,
    QUESTIONS,
    cache_of_datasets,
    evaluated,
    model_of_lm_eval,
    scores,
    write_yaml,
)

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")

WINDOW = 24  # the longest request of the engine, in tokens
IDENTITY = {"base": "f", "aligned": "f"}

SHOTS = [
    {"q": f"Example {letter}?", "a": ["no", "yes", f"may{letter}be"], "gold": i % 3, "word": "no"}
    for i, letter in enumerate("abcdefg")
]
PAGES = [
    {"page": "A page of text that goes on for longer than one window. " * 3},
    {"page": "short"},
    {"page": "The end of it.\n\nWith a second part, and é."},
]

TASKS: dict[str, dict[str, Any]] = {
    "plain": CHOICE,
    "delimited": {**CHOICE, "target_delimiter": "\n"},
    "undelimited": {**CHOICE, "target_delimiter": "", "doc_to_choice": [" one", " two", " three"]},
    "described": {**CHOICE, "description": "Answer these.\n\n", "fewshot_delimiter": "\n--\n"},
    "bare": {**CHOICE, "doc_to_text": ""},
    "by_text": {**CHOICE, "doc_to_target": "{{a[gold]}}"},
    "informed": {
        **CHOICE,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
    },
    "several": {**CHOICE, "doc_to_target": "{{[0, gold]}}"},
    "inputs": {
        **CHOICE,
        "doc_to_text": "gold",
        "doc_to_choice": "{{[q + ' ' + a[0], q + ' ' + a[1], q + ' ' + a[2]]}}",
        "doc_to_target": "is what it is",
    },
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{' ' + word}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "pages": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "page",
        "metric_list": [
            {"metric": name, "aggregation": aggregation, "higher_is_better": False}
            for name, aggregation in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer, the data, and a YAML file for each task."""
    from tests.support.checkpoints import write_tokenizer

    root = tmp_path_factory.mktemp("harness")
    write_tokenizer(root / "tokenizer")
    for name, rows in (("questions", QUESTIONS), ("shots", SHOTS), ("pages", PAGES)):
        (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in TASKS.items():
        write_task(root, name, settings)
    return root


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cache_of_datasets(tmp_path_factory.mktemp("datasets")):
        yield


def write_task(root: Path, name: str, settings: dict[str, Any], data: str | None = None) -> Path:
    """Write the YAML file of a task over the local data."""
    is_pages = name.endswith("pages")
    rows = data or ("pages.json" if is_pages else "questions.json")
    return write_yaml(root, name, settings, rows, None if is_pages else "shots.json")


@pytest.fixture(scope="module")
def peer(directory: Path) -> Callable[..., dict[str, Any]]:
    """Evaluate tasks with lm-eval's own evaluator; returns its results, and the tokens it asked for."""

    def evaluate(source: str, shots: int | None = None, limit: int | None = None, seed: int = 1234) -> dict[str, Any]:
        model = model_of_lm_eval(load_tokenizer(directory / "tokenizer"), WINDOW)
        found = evaluated(model, directory, tasks=[source], num_fewshot=shots, limit=limit, fewshot_random_seed=seed)
        return {"results": found["results"], "asked": model.asked}

    return evaluate


@pytest.fixture
def sweep(directory: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """Build a spec and commit the fake model's scores at some λs; returns the run directory, outcomes written."""

    def run(
        spec: LmEvalSpec, lambdas: tuple[str, ...] = ("0",), quarantined: tuple[int, ...] = (), to: str = "run"
    ) -> RunDir:
        harness, built = build(directory, spec)
        target = RunDir(tmp_path / to)
        commit(target, built, lambdas, quarantined)
        write_outcomes(target, harness, built, IDENTITY, read_plan(target))
        return target

    return run


def build(directory: Path, spec: LmEvalSpec) -> tuple[LmEvalTasks, tuple[BuiltLmEvalTask, ...]]:
    tokenizer = load_tokenizer(directory / "tokenizer")
    harness = load_lm_eval(spec)
    return harness, tuple(build_instances(task, tokenizer, WINDOW) for task in harness.tasks)


def commit(
    run: RunDir, built: tuple[BuiltLmEvalTask, ...], lambdas: tuple[str, ...], quarantined: tuple[int, ...] = ()
) -> None:
    """Commit the fake model's scores, one shard a task; `quarantined` are request ids of the first task."""
    parent = {"source": "p", "fingerprint": "f"}
    engine = {"device": "cpu", "dtype": "float32", "tensor_parallel": 1}
    commit_json(run.sweep_json, {"pair": {"base": parent, "aligned": parent}, "engine": engine, "versions": {}})
    parts = {name: part for task in built for name, part in task.parts.items()}
    plan = {}
    for number, (name, part) in enumerate(parts.items()):
        plan[name] = {
            "shards": [[0, len(part.table)]],
            "lambdas": list(lambdas),
            "documents": part.documents,
            "format": "lm-eval",
            "shots": 0,
            "scored_as": part.scored_as,
        }
        commit_table(run.requests(name), part.table)
        left_out = set(quarantined) if number == 0 else set()
        rows = [row for row in part.table.to_pylist() if row["request_id"] not in left_out]
        answers = [scores(row["token_ids"], row["continuation_start"]) for row in rows]
        for lam in lambdas:
            tokens = {
                "request_id": [row["request_id"] for row in rows],
                **schemas.place_columns(lam, len(rows)),
                "logprobs": [logprobs for logprobs, _ in answers],
                "ranks": [[None] * len(top1) for _, top1 in answers],
                "top1_ids": [top1 for _, top1 in answers],
                "top1_logprobs": [logprobs for logprobs, _ in answers],
            }
            commit_table(run.unit("tokens", name, lam, 0), pa.table(tokens, schema=schemas.TOKENS))
            bad = {"request_id": sorted(left_out), "reason": ["too long"] * len(left_out)}
            if left_out:
                commit_table(run.unit("quarantine", name, lam, 0), pa.table(bad, schema=schemas.QUARANTINE))
    commit_json(run.plan_json, {"tasks": plan})


def replaced(table: pa.Table, column: str, rows: list[Any]) -> pa.Table:
    """Return a table of schemas.TOKENS with other values in one column."""
    field = schemas.TOKENS.field(column)
    return table.set_column(schemas.TOKENS.get_field_index(column), field, pa.array(rows, field.type))


def outcomes(run: RunDir, name: str, lam: str = "0") -> dict[str, dict[str, tuple[float, int]]]:
    """Return value and n by task and metric."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row in pq.read_table(run.outcomes(name)).to_pylist():
        if row["lam"] == Decimal(lam):
            found.setdefault(row["task"], {})[row["metric"]] = row["value"], row["n"]
    return found


def theirs(results: dict[str, Any]) -> dict[str, float]:
    """Return lm-eval's metrics, without what it says about them."""
    return {key: value for key, value in results.items() if "," in key and "_stderr" not in key}


# The same requests and metrics


# lm-eval cannot show examples with several right answers.
ASKED = [(name, shots) for name in TASKS for shots in (None, 2) if shots is None or name not in ("several", "pages")]


@pytest.mark.parametrize(("name", "shots"), ASKED)
def test_metrics_are_those_of_lm_eval(name: str, shots: int | None, directory: Path, peer, sweep) -> None:
    path = str(directory / f"{name}.yaml")
    expected = peer(name, shots)
    found = outcomes(sweep(LmEvalSpec(path, shots=shots)), name)[name]
    assert found.pop(LEFT_OUT) == (0, len(PAGES if name == "pages" else QUESTIONS))
    assert {metric: value for metric, (value, _) in found.items()} == theirs(expected["results"][name])
    assert len(found) >= 2
    assert {n for _, n in found.values()} == {len(PAGES if name == "pages" else QUESTIONS)}


@pytest.mark.parametrize(("name", "shots"), ASKED)
def test_tokens_are_those_of_lm_eval(name: str, shots: int | None, directory: Path, peer) -> None:
    _, (built,) = build(directory, LmEvalSpec(str(directory / f"{name}.yaml"), shots=shots))
    rows = [row for part in built.parts.values() for row in part.table.to_pylist()]
    ours = [(row["token_ids"], row["continuation_start"]) for row in rows]
    # Unconditional requests have a table of their own here.
    assert sorted(ours) == sorted(peer(name, shots)["asked"])


def test_seed_and_limit(directory: Path, peer, sweep) -> None:
    spec = LmEvalSpec(str(directory / "plain.yaml"), shots=3, limit=4, seed=7)
    found = outcomes(sweep(spec), "plain")["plain"]
    assert {key: value for key, (value, _) in found.items() if "," in key} == theirs(
        peer("plain", 3, 4, seed=7)["results"]["plain"]
    )
    assert found["acc,none"][1] == 4
    one, other = (build(directory, replace(spec, seed=seed))[1][0].parts["plain"] for seed in (7, 8))
    assert one.requests_sha256 != other.requests_sha256


def test_a_text_longer_than_a_window_is_several_requests(directory: Path) -> None:
    _, (built,) = build(directory, LmEvalSpec(str(directory / "pages.yaml")))
    table = built.parts["pages"].table
    assert table["doc_id"].to_pylist().count("pages/0") > 2
    assert max(map(len, table["token_ids"].to_pylist())) == WINDOW - 1
    assert [len(rows) for rows in built.rows] == [1, 1, 1]
    assert built.parts["pages"].scored_as == "other"


def test_windows_over_texts_are_those_of_the_model_and_engines_are_as_long_as_the_longest(
    directory: Path, tmp_path: Path
) -> None:
    from lambdasweep import demo
    from lambdasweep.config import load_config
    from lambdasweep.prepare import prepare

    (directory / "long.json").write_text(json.dumps({"page": "Over and over. " * 150}) + "\n")
    path = write_task(directory, "long_pages", TASKS["pages"], "long.json")
    parents = {}
    for role, parent in (("base", demo.BASE), ("aligned", demo.ALIGNED)):
        copy = Path(shutil.copytree(parent, tmp_path / role))
        config = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": 16384}
        (copy / "config.json").write_text(json.dumps(config))
        parents[role] = str(copy)
    flags = {**parents, "lambdas": "0,1", "out": str(tmp_path / "run")}
    prepared = prepare(load_config(flags, [f"lm-eval:{path}"], [], [], None))
    (ids,) = prepared.tasks["long_pages"].built.table["token_ids"].to_pylist()
    length = prepared.settings.max_model_len
    assert 1024 < len(ids) <= length == 1 << (len(ids) - 1).bit_length() < 8192
    short = prepare(load_config(flags | {"max_model_len": 1024}, [f"lm-eval:{path}"], [], [], None))
    assert short.tasks["long_pages"].built.table.num_rows > 1
    assert short.settings.max_model_len == 1024


def test_filters_and_repeats(directory: Path, peer, sweep) -> None:
    kept = {"name": "kept", "filter": [{"function": "take_first"}]}
    path = write_task(directory, "filtered", {**CHOICE, "repeats": 2, "filter_list": [kept, {**kept, "name": "again"}]})
    found = outcomes(sweep(LmEvalSpec(str(path))), "filtered")["filtered"]
    assert {key: value for key, (value, _) in found.items() if "," in key} == theirs(
        peer("filtered")["results"]["filtered"]
    )
    assert {"acc,kept", "acc,again"} <= found.keys()


def test_results_computed_in_a_way_of_their_own(directory: Path, peer, sweep) -> None:
    own = "def results(doc, results):\n    return {'acc': 1.0, 'margin': results[0][0] - results[1][0]}\n"
    (directory / "own_results.py").write_text(own)
    path = write_task(directory, "own", {key: value for key, value in CHOICE.items() if key != "metric_list"})
    path.write_text(path.read_text() + "process_results: !function own_results.results\n")
    found = outcomes(sweep(LmEvalSpec(str(path))), "own")["own"]
    assert {key: value for key, (value, _) in found.items() if "," in key} == theirs(peer("own")["results"]["own"])
    assert "margin,none" in found
    _, (built,) = build(directory, LmEvalSpec(str(path)))
    assert built.parts["own"].scored_as == "other"
    (directory / "own_results.py").write_text(own.replace("1.0", "0.0"))
    assert build(directory, LmEvalSpec(str(path)))[1][0].parts["own"].sha256 != built.parts["own"].sha256


# Groups


@pytest.fixture(scope="module")
def group(directory: Path) -> Path:
    write_task(directory, "first", {**CHOICE, "doc_to_text": "{{q}}"})
    write_task(directory, "second", {**CHOICE, "doc_to_text": "Q: {{q}}"}, data="shots.json")
    path = directory / "both.yaml"
    weights = [{"metric": "acc", "weight_by_size": True}, {"metric": "acc_norm", "weight_by_size": False}]
    path.write_text(yaml.safe_dump({"group": "both", "task": ["first", "second"], "aggregate_metric_list": weights}))
    return path


@pytest.fixture
def _quick_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave lm-eval's thousands of own tasks out of its index, which takes seconds to read."""
    from lm_eval import tasks

    init = tasks.TaskManager.__init__
    monkeypatch.setattr(
        tasks.TaskManager, "__init__", lambda self, **options: init(self, **(options | {"include_defaults": False}))
    )


@pytest.mark.usefixtures("_quick_index")
def test_a_group_has_its_members_and_its_aggregate(group: Path, peer, sweep) -> None:
    expected = peer("both")["results"]
    run = sweep(LmEvalSpec(str(group)))
    found = outcomes(run, "both")
    assert set(run.plan()["tasks"]) == {"first", "second"}
    assert found.keys() == {"first", "second", "both"}
    for name in found:
        values = {key: value for key, (value, _) in found[name].items() if "," in key}
        assert values == theirs(expected[name])
    assert found["both"]["acc,none"][1] == len(QUESTIONS) + len(SHOTS)


@pytest.mark.usefixtures("_quick_index")
def test_a_group_under_another_name(group: Path) -> None:
    harness = load_lm_eval(LmEvalSpec(str(group), name="mine"))
    assert harness.name == "mine"
    assert [task.name for task in harness.tasks] == ["mine.first", "mine.second"]
    assert list(harness.groups) == ["mine"]
    assert harness.names == {"mine", "mine.first", "mine.second"}


@pytest.mark.usefixtures("_quick_index")
def test_a_group_with_an_empty_member_has_no_aggregate(group: Path, sweep) -> None:
    found = outcomes(sweep(LmEvalSpec(str(group)), quarantined=tuple(range(3 * len(QUESTIONS)))), "both")
    assert found["first"] == {LEFT_OUT: (6, 6)}
    assert found["both"] == {LEFT_OUT: (6, 6 + len(SHOTS))}
    assert "acc,none" in found["second"]


# What is left out


def test_a_quarantined_request_leaves_its_document_out(directory: Path, sweep) -> None:
    whole = outcomes(sweep(LmEvalSpec(str(directory / "plain.yaml"))), "plain")["plain"]
    found = outcomes(sweep(LmEvalSpec(str(directory / "plain.yaml")), quarantined=(4,), to="b"), "plain")["plain"]
    assert found[LEFT_OUT] == (1, 6)
    assert found["acc,none"][1] == 5
    _, (built,) = build(directory, LmEvalSpec(str(directory / "plain.yaml")))
    right = [is_right(built, place) for place in range(6)]
    assert whole["acc,none"][0] == sum(right) / 6
    assert found["acc,none"][0] == (sum(right) - right[1]) / 5


def is_right(built: BuiltLmEvalTask, place: int) -> bool:
    rows = built.parts["plain"].table.slice(3 * place, 3).to_pylist()
    sums = [sum(scores(row["token_ids"], row["continuation_start"])[0]) for row in rows]
    return rows[int(np.argmax(sums))]["is_gold"]


def test_a_lost_window_leaves_its_text_out(directory: Path, sweep) -> None:
    found = outcomes(sweep(LmEvalSpec(str(directory / "pages.yaml")), quarantined=(1,)), "pages")["pages"]
    assert found[LEFT_OUT] == (1, 3)
    assert {n for metric, (_, n) in found.items() if "," in metric} == {2}


def test_unknown_greediness_is_no_guess(directory: Path, tmp_path: Path) -> None:
    harness, built = build(directory, LmEvalSpec(str(directory / "lambada.yaml")))
    run = RunDir(tmp_path / "run")
    commit(run, built, ("0",))
    path = run.unit("tokens", "lambada", "0", 0)
    table = pq.read_table(path)
    top1 = table["top1_ids"].to_pylist()
    places = [
        place
        for place, (row, ids) in enumerate(zip(built[0].parts["lambada"].table.to_pylist(), top1, strict=True))
        if ids == row["token_ids"][row["continuation_start"] :]
    ]
    top1[places[0]] = [None] * len(top1[places[0]])
    commit_table(path, replaced(table, "top1_ids", top1))
    write_outcomes(run, harness, built, IDENTITY, read_plan(run))
    assert outcomes(run, "lambada")["lambada"][LEFT_OUT] == (1, 6)


def test_a_perplexity_beyond_float64_is_null(directory: Path, tmp_path: Path) -> None:
    harness, built = build(directory, LmEvalSpec(str(directory / "lambada.yaml")))
    run = RunDir(tmp_path / "run")
    commit(run, built, ("0",))
    path = run.unit("tokens", "lambada", "0", 0)
    table = pq.read_table(path)
    low = [[-5000.0] * len(one) for one in table["logprobs"].to_pylist()]
    commit_table(path, replaced(table, "logprobs", low))
    write_outcomes(run, harness, built, IDENTITY, read_plan(run))
    found = outcomes(run, "lambada")["lambada"]
    assert found["perplexity,none"] == (None, 6)
    assert not math.isnan(found["acc,none"][0])


# Resume


def test_only_complete_lambdas_and_those_once(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambdasweep.tasks.lm_eval_tasks import own_metrics as module

    harness, built = build(directory, LmEvalSpec(str(directory / "informed.yaml")))
    run = RunDir(tmp_path / "run")
    commit(run, built, ("0", "0.5"))
    missing = run.unit("tokens", "informed.unconditional", "0.5", 0)
    kept = missing.read_bytes()
    missing.unlink()
    write_outcomes(run, harness, built, IDENTITY, read_plan(run))
    assert not outcomes(run, "informed", "0.5")
    missing.write_bytes(kept)
    computed = []
    evaluate = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *given: computed.append(given) or evaluate(*given))
    write_outcomes(run, harness, built, IDENTITY, read_plan(run))
    assert len(computed) == 1
    assert outcomes(run, "informed", "0.5") == outcomes(run, "informed", "0")
    again = run.outcomes("informed").read_bytes()
    other = RunDir(tmp_path / "other")
    commit(other, built, ("0", "0.5"))
    write_outcomes(other, harness, built, IDENTITY, read_plan(other))
    assert other.outcomes("informed").read_bytes() == again


# What our own metrics see


def test_the_right_choice_and_its_bytes(directory: Path) -> None:
    _, (built,) = build(directory, LmEvalSpec(str(directory / "plain.yaml")))
    table = built.parts["plain"].table
    table.validate(full=True)
    assert table.schema.equals(schemas.REQUESTS)
    assert table["doc_id"].to_pylist()[2:4] == ["plain/0", "plain/1"]
    assert table["choice"].to_pylist()[:4] == [0, 1, 2, 0]
    golds = [row["choice"] for row in table.to_pylist() if row["is_gold"]]
    assert golds == [row["gold"] for row in QUESTIONS]
    assert table["continuation_bytes"].to_pylist()[:3] == [4, 10, 3]
    _, (undelimited,) = build(directory, LmEvalSpec(str(directory / "undelimited.yaml")))
    assert undelimited.parts["undelimited"].table["continuation_bytes"].to_pylist()[:3] == [4, 4, 6]


@pytest.mark.parametrize(
    ("name", "scored_as"),
    [
        ("plain", "choices"),
        ("by_text", "choices"),
        ("inputs", "contexts"),
        ("lambada", "continuation"),
        ("pages", "other"),
        ("several", "other"),
    ],
)
def test_what_the_requests_are_to_each_other(name: str, scored_as: str, directory: Path) -> None:
    _, (built,) = build(directory, LmEvalSpec(str(directory / f"{name}.yaml")))
    part = built.parts[name]
    assert part.scored_as == scored_as
    golds = part.table["is_gold"].to_pylist()
    assert sum(golds) == (0 if scored_as == "other" else len(QUESTIONS))
    assert any("none of ours" in warning for warning in part.warnings) == (scored_as == "other")
    if name == "by_text":
        assert [row["choice"] for row in part.table.to_pylist() if row["is_gold"]] == [row["gold"] for row in QUESTIONS]


def test_choices_without_context_are_no_choices(directory: Path) -> None:
    _, (built,) = build(directory, LmEvalSpec(str(directory / "informed.yaml")))
    assert {name: (part.scored_as, len(part.table)) for name, part in built.parts.items()} == {
        "informed": ("choices", 18),
        "informed.unconditional": ("other", 18),
    }
    assert set(built.parts["informed.unconditional"].table["continuation_start"].to_pylist()) == {1}


@pytest.mark.slow
def test_metrics_hold_both(directory: Path, sweep) -> None:
    from calibration.analyse import analyse

    for name in ("plain", "informed", "inputs", "lambada", "pages"):
        run = sweep(LmEvalSpec(str(directory / f"{name}.yaml")), lambdas=("0", "1"), to=name)
        rows = analyse(run, resamples=10).metrics.to_pylist()
        theirs = {row["metric"]: row for row in rows if row["metric"].startswith("lm_eval/") and row["lam"] == 1}
        assert {key.removeprefix("lm_eval/") for key in theirs} == outcomes(run, name, "1")[name].keys()
        assert all(row["confidence"] == "sum" and row["split"] == "all" for row in theirs.values())
        ours = {(row["metric"], row["confidence"]): row["value"] for row in rows if row["split"] == "all"}
        assert {row["task"] for row in rows} == {name}
        assert (("nll", "sum") in ours) == (name != "pages")
        assert (("option_mass", "sum") in ours) == (name in ("plain", "informed"))
        if name != "pages":
            assert ours["acc", "sum"] == pytest.approx(theirs["lm_eval/acc,none"]["value"])
        if name == "plain":
            assert ours["acc_bytes", "bytes"] == pytest.approx(theirs["lm_eval/acc_bytes,none"]["value"])
        order = [(row["lam"], row["metric"]) for row in rows]
        assert order == sorted(order)


@pytest.mark.usefixtures("few_resamples")
def test_the_terminal_shows_both(directory: Path, sweep, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from calibration.analyse import write_metrics
    from calibration.terminal.tables import render

    run = sweep(LmEvalSpec(str(directory / "plain.yaml")), lambdas=("0", "0.5"), quarantined=(4,))
    tables = render(write_metrics(run))
    for table in tables:
        Console(width=80).print(table)
    shown = capsys.readouterr().out
    assert len(tables) == 2
    assert "plain, by lm-eval" in shown
    assert "acc_norm" in shown
    assert "left out: up to 1 of 6 documents at 2 of 2 λs" in shown


@pytest.mark.usefixtures("_quick_index")
def test_a_group_is_in_the_metrics(group: Path, sweep) -> None:
    from calibration.analyse import analyse
    from calibration.terminal.tables import render

    metrics = analyse(sweep(LmEvalSpec(str(group))), resamples=10).metrics
    rows = [row for row in metrics.to_pylist() if row["task"] == "both"]
    assert [row["metric"] for row in rows] == ["lm_eval/acc,none", "lm_eval/acc_norm,none", "lm_eval/docs_left_out"]
    assert len(render(metrics)) == 6  # two tasks have our metrics and lm-eval's, and so has their group


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"output_type": "generate_until"}, "no metric of a single output is a number"),
        ({"output_type": "multi"}, "Error"),
        ({"doc_to_choice": "{{nonsense("}, "TemplateSyntaxError"),
        ({"dataset_path": "no/such"}, "Error"),
        ({"unsafe_code": True}, "odd runs code that a model wrote"),
    ],
)
def test_what_lm_eval_has_and_we_cannot_score(
    settings: dict[str, Any], says: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = write_task(directory, "odd", {**CHOICE, **settings})
    with pytest.raises(TaskError) as caught:
        load_lm_eval(LmEvalSpec(str(path)))
    assert says in str(caught.value)
    assert str(path) in caught.value.title


@pytest.mark.usefixtures("_quick_index")
def test_members_whose_outputs_cannot_be_judged_are_named(directory: Path) -> None:
    for name in ("writes", "speaks"):
        write_task(directory, name, {**CHOICE, "output_type": "generate_until"})
    path = directory / "mixed.yaml"
    path.write_text(yaml.safe_dump({"group": "mixed", "task": ["plain", "writes", "speaks"]}))
    with pytest.raises(TaskError) as caught:
        load_lm_eval(LmEvalSpec(str(path)))
    assert [problem.split()[0] for problem in caught.value.problems] == ["writes:", "speaks:"]


def test_a_target_that_is_a_list_is_refused(directory: Path) -> None:
    """lm-eval makes no text of such a row, and its own model would end in an AttributeError."""
    write_task(directory, "two", {**TASKS["lambada"], "doc_to_target": "a"})
    with pytest.raises(TaskError, match=r"two: doc_to_text or doc_to_target of document 0 is a list, where"):
        load_lm_eval(LmEvalSpec(str(directory / "two.yaml")))


@pytest.mark.usefixtures("_quick_index")
def test_a_name_that_lm_eval_does_not_know() -> None:
    with pytest.raises(TaskError, match=r"lm-eval 0\.4\.13 has no task of that name: give a name that"):
        load_lm_eval(LmEvalSpec("arc_eesy"))


def test_bad_settings_come_at_once(directory: Path) -> None:
    with pytest.raises(TaskError) as caught:
        load_lm_eval(LmEvalSpec(str(directory / "plain.yaml"), name="a/b", shots=-1, limit=0))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "shots is -1",
        "limit is 0",
        "the task name 'a/b' cannot be a file name",
    ]
    with pytest.raises(TaskError, match="the file cannot be read"):
        load_lm_eval(LmEvalSpec(str(directory / "gone.yaml")))


def test_lm_eval_is_missing_or_another(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambdasweep.tasks.lm_eval_tasks import load

    monkeypatch.setattr(load.metadata, "version", lambda name: "0.4.9")
    with pytest.raises(InputError, match=r"need lm-eval 0\.4\.13, and 0\.4\.9 is installed"):
        load_lm_eval(LmEvalSpec(str(directory / "plain.yaml")))

    def gone(name: str) -> str:
        raise load.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(load.metadata, "version", gone)
    with pytest.raises(InputError, match=r"need lm-eval: install lambdasweep\[lm-eval\]"):
        load_lm_eval(LmEvalSpec(str(directory / "plain.yaml")))


def test_a_task_that_refuses_examples_says_so(directory: Path) -> None:
    path = write_task(directory, "zero", {**CHOICE, "num_fewshot": 0})
    harness = load_lm_eval(LmEvalSpec(str(path), shots=2))
    assert harness.tasks[0].shots == 0
    assert "takes 0 shots" in harness.warnings[0]


def test_a_metric_that_fails_names_its_task(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness, built = build(directory, LmEvalSpec(str(directory / "plain.yaml")))
    run = RunDir(tmp_path / "run")
    commit(run, built, ("0",))
    monkeypatch.setattr(type(built[0].source.task), "process_results", lambda *_: {}["gold"])
    with pytest.raises(LambdasweepError, match="task plain at λ = 0: lm-eval cannot make metrics of the scores"):
        write_outcomes(run, harness, built, IDENTITY, read_plan(run))


# Identity


def test_a_changed_task_is_another(directory: Path) -> None:
    def sha256(**changes: Any) -> tuple[str, str]:
        path = write_task(directory, "same", CHOICE | changes)
        _, (built,) = build(directory, LmEvalSpec(str(path)))
        return built.parts["same"].sha256, built.parts["same"].requests_sha256

    first = sha256()
    assert sha256() == first
    assert sha256(metric_list=CHOICE["metric_list"][:1]) != first
    assert sha256(metric_list=CHOICE["metric_list"][:1])[1] == first[1]
    assert sha256(doc_to_text="{{q}}?")[1] != first[1]


def test_a_changed_document_is_another_task(directory: Path) -> None:
    def sha256(word: str) -> tuple[str, str]:
        (directory / "other.json").write_text("".join(json.dumps({**row, "word": word}) + "\n" for row in QUESTIONS))
        path = write_task(directory, "changing", CHOICE, data="other.json")
        _, (built,) = build(directory, LmEvalSpec(str(path)))
        return built.parts["changing"].sha256, built.parts["changing"].requests_sha256

    (one, requests), (other, same) = sha256("one"), sha256("another word")
    assert requests == same  # no request shows that word, but a metric may use it
    assert one != other


def test_a_moved_task_is_the_same(directory: Path, tmp_path: Path) -> None:
    _, (here,) = build(directory, LmEvalSpec(str(directory / "plain.yaml")))
    (tmp_path / "questions.json").write_bytes((directory / "questions.json").read_bytes())
    (tmp_path / "shots.json").write_bytes((directory / "shots.json").read_bytes())
    _, (there,) = build(directory, LmEvalSpec(str(write_task(tmp_path, "plain", CHOICE))))
    assert here.parts["plain"].sha256 == there.parts["plain"].sha256
