"""Files in the shapes of lm-eval, Inspect and metrics.json are read, and whatever is wrong with them is told."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lambdasweep.each.results import (
    Measured,
    ResultsError,
    collect,
    compare_with,
    is_of_inspect,
    is_of_lm_eval,
    of_command,
    of_inspect,
    of_lm_eval,
)

# lm-eval 0.4.13 writes this (`EvalAcc._to_eval_results`, `EvaluationTracker.save_results_aggregated`), and more keys.
LM_EVAL: dict[str, Any] = {
    "results": {
        "both": {
            "name": "both",
            "alias": "both",
            "sample_len": 30,
            "acc,none": 0.6,
            "acc_stderr,none": 0.03,
            "sample_count": {"acc,none": 29},
        },
        "arc": {
            "name": "arc",
            "alias": " - arc",
            "sample_len": 20,
            "acc,none": 0.55,
            "acc_stderr,none": 0.1,
            "acc_norm,none": 0.65,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {
            "name": "gsm8k",
            "alias": "gsm8k",
            "sample_len": 10,
            "exact_match,strict-match": 0.0,
            "exact_match_stderr,strict-match": 0.0,
            "perplexity,none": math.nan,
            "note,none": "high",
        },
    },
    "groups": {"both": {"name": "both", "alias": "both", "acc,none": 0.6}},
    "group_subtasks": {"both": ["arc"]},
    "configs": {"arc": {}},
    "versions": {"arc": 1.0},
    "n-shot": {"arc": 0},
    "n-samples": {"arc": {"original": 100, "effective": 19}},
}

# Inspect writes this (version 2 of its format), and more keys.
INSPECT: dict[str, Any] = {
    "version": 2,
    "status": "success",
    "eval": {"task": "security/guide", "task_id": "x", "model": "openai/m", "dataset": {"name": "d", "samples": 8}},
    "results": {
        "total_samples": 8,
        "completed_samples": 8,
        "scores": [
            {
                "name": "match",
                "scorer": "match",
                "params": {},
                "metrics": {
                    "accuracy": {"name": "accuracy", "value": 0.75, "params": {}},
                    "stderr": {"name": "stderr", "value": 0.125, "params": {}},
                    "var": {"name": "var", "value": 0.25, "params": {}},
                },
            },
            {
                "name": "judge",
                "scorer": "judge",
                "reducer": "pass_at_2",
                "scored_samples": 4,
                "metrics": {
                    "mean": {"name": "mean", "value": 3, "params": {}},
                    "bootstrap_stderr": {"name": "bootstrap_stderr", "value": 0.5},
                },
            },
        ],
    },
    "stats": {},
}


def write(folder: Path, name: str, value: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ResultsError) as refused:
        collect(folder)
    return refused.value.problems


def test_results_of_lm_eval() -> None:
    assert is_of_lm_eval(LM_EVAL)
    assert of_lm_eval(LM_EVAL, "r.json") == [
        Measured("both", "lm_eval", "acc,none", 0.6, 0.03, 29, "r.json"),
        Measured("arc", "lm_eval", "acc,none", 0.55, 0.1, 19, "r.json"),
        Measured("arc", "lm_eval", "acc_norm,none", 0.65, None, 19, "r.json"),
        Measured("gsm8k", "lm_eval", "exact_match,strict-match", 0.0, 0.0, 10, "r.json"),
        Measured("gsm8k", "lm_eval", "perplexity,none", None, None, 10, "r.json"),
    ]


def test_a_file_that_lm_eval_itself_wrote(tmp_path: Path) -> None:
    """lm-eval's own code makes the results and names the file, so that the shape is not only what we take it for."""
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator_utils import EvalAcc
    from lm_eval.loggers import EvaluationTracker

    found = EvalAcc(
        metrics={"arc": {"name": "arc", "alias": "arc", "sample_len": 7, "acc,none": 0.25, "acc_stderr,none": 0.125}},
        configs={"arc": {"task": "arc"}},
        versions={"arc": 1},
        num_fewshot={"arc": 0},
        higher_is_better={"arc": {"acc": True}},
        n_samples={"arc": {"original": 9, "effective": 7}},
    )
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("local-completions", "model=m", None, None, False)
    tracker.save_results_aggregated(found._to_eval_results(), {})
    (one,) = collect(tmp_path)
    assert (one.task, one.metric, one.value, one.standard_error, one.n) == ("arc", "acc,none", 0.25, 0.125, 7)
    assert one.file.startswith("m/results_")


def test_logs_of_inspect() -> None:
    assert is_of_inspect(INSPECT)
    assert not is_of_inspect(LM_EVAL)
    assert not is_of_lm_eval(INSPECT)
    assert of_inspect(INSPECT, "l.json") == [
        Measured("security/guide", "inspect", "match/accuracy", 0.75, 0.125, 8, "l.json"),
        Measured("security/guide", "inspect", "match/var", 0.25, None, 8, "l.json"),
        Measured("security/guide", "inspect", "judge/pass_at_2/mean", 3.0, 0.5, 4, "l.json"),
    ]


def test_scores_that_inspect_itself_wrote() -> None:
    """Inspect 0.3.285 wrote this of three scorers: with reducers, a dictionary of values, and groups of samples."""

    def metric(name: str, value: float, **more: object) -> dict[str, dict[str, Any]]:
        return {name: {"name": name, **more, "value": value, "params": {}}}

    counted = {"scored_samples": 10, "unscored_samples": 0, "params": {}}
    match = {"name": "match", "scorer": "match", **counted}
    log: dict[str, Any] = {
        "version": 2,
        "status": "success",
        "eval": {"task": "again"},
        "results": {
            "total_samples": 30,
            "completed_samples": 30,
            "scores": [
                match | {"reducer": "mode", "metrics": metric("accuracy", 0.2) | metric("stderr", 0.13333333333333333)},
                match
                | {"reducer": "pass_at_2", "metrics": metric("accuracy", 0.4) | metric("stderr", 0.13877773329774218)},
                {"name": "first", "scorer": "two", **counted, "metrics": metric("mean", 0.3) | metric("stderr", 0.15)},
                {"name": "length", "scorer": "two", **counted, "metrics": metric("mean", 8.0) | metric("std", 0.0)},
                {
                    "name": "places",
                    "scorer": "places",
                    **counted,
                    "metrics": metric("Kesh", 0.5, group="grouped") | metric("all", 0.3, group="grouped"),
                },
            ],
            "headline": {"scorer": "match", "score": "match", "metric": "accuracy", "reducer": "mean"},
        },
    }
    assert is_of_inspect(log)
    assert [(one.metric, one.value, one.standard_error, one.n) for one in of_inspect(log, "l.json")] == [
        ("match/mode/accuracy", 0.2, 0.13333333333333333, 10),
        ("match/pass_at_2/accuracy", 0.4, 0.13877773329774218, 10),
        ("first/mean", 0.3, 0.15, 10),
        ("length/mean", 8.0, None, 10),
        ("length/std", 0.0, None, 10),
        ("places/Kesh", 0.5, None, 10),
        ("places/all", 0.3, None, 10),
    ]


def test_a_file_of_ones_own() -> None:
    given = {"b": {"score": 1, "score_stderr": 0.5, "n": 12, "odd_stderr": 2.0}, "a": {"wins": None, "n_wins": 3}}
    assert of_command(given) == [
        Measured("b", "command", "score", 1.0, 0.5, 12, "metrics.json"),
        Measured("b", "command", "odd_stderr", 2.0, None, 12, "metrics.json"),
        Measured("a", "command", "wins", None, None, 0, "metrics.json"),
        Measured("a", "command", "n_wins", 3.0, None, 0, "metrics.json"),
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], 'is not {"task": {"metric": value}}'),
        ({}, 'is not {"task": {"metric": value}}'),
        ({"a": 0.5}, "a has no metrics"),
        ({"a": {"n": 5}}, "a has no metrics"),
        ({"a": {"m": "0.5"}}, "m of a is '0.5': give a number or null"),
        ({"a": {"m": True}}, "m of a is True: give a number or null"),
        ({"a": {"m": 1, "n": 0}}, "n of a is 0: give the number of documents"),
        ({"a": {"m": 1, "m_stderr": -0.1}}, "m_stderr of a is -0.1: a standard error is 0 or more"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_used(given: object, says: str, tmp_path: Path) -> None:
    write(tmp_path, "metrics.json", given)
    (problem,) = problems(tmp_path)
    assert says in problem
    assert problem.startswith("metrics.json")


def test_everything_that_a_command_left_is_collected(tmp_path: Path) -> None:
    write(tmp_path, "metrics.json", {"mine": {"score": 1}})
    write(tmp_path, "m/results_2026-11-28T00-00-00.json", LM_EVAL)
    write(tmp_path, "logs/one.json", INSPECT)
    # Files that are none of the three say nothing.
    write(tmp_path, "data.json", '{"a": 1}\n{"a": 2}\n')
    write(tmp_path, "deep/metrics.json", {"other": {"score": 2}})
    write(tmp_path, "config.json", {"results": 1})
    found = collect(tmp_path)
    assert [(one.task, one.tool) for one in found] == sorted((one.task, one.tool) for one in found)
    assert {one.tool for one in found} == {"command", "lm_eval", "inspect"}
    assert len(found) == 1 + 5 + 3
    assert {one.file for one in found} == {
        "metrics.json",
        "m/results_2026-11-28T00-00-00.json",
        "logs/one.json",
    }


def test_a_number_that_two_files_give_is_one_if_they_agree(tmp_path: Path) -> None:
    write(tmp_path, "a/results_1.json", LM_EVAL)
    write(tmp_path, "b/results_2.json", LM_EVAL)
    assert len(collect(tmp_path)) == 5
    other = copy.deepcopy(LM_EVAL)
    other["results"]["arc"]["acc,none"] = 0.5
    write(tmp_path, "b/results_2.json", other)
    assert problems(tmp_path) == ("acc,none of arc is 0.55 in a/results_1.json and 0.5 in b/results_2.json",)


def test_what_is_missing_or_broken_is_told(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path)
    assert problem.startswith("it left no results in $LAMBDASWEEP_OUT: write metrics.json there")
    write(tmp_path, "logs/x.eval", "PK")
    assert "logs/x.eval is a log of Inspect that is not JSON" in problems(tmp_path)[1]
    write(tmp_path, "metrics.json", '{"a": ')
    write(tmp_path, "m/results_1.json", "")
    assert [problem.partition(":")[0] for problem in problems(tmp_path)] == [
        "m/results_1.json is broken",
        "metrics.json is broken",
    ]


def test_a_log_of_inspect_that_did_not_finish(tmp_path: Path) -> None:
    broken = copy.deepcopy(INSPECT) | {"status": "error", "results": None}
    write(tmp_path, "logs/1.json", broken)
    assert problems(tmp_path) == ("logs/1.json: Inspect's log of security/guide has the status error",)
    write(tmp_path, "logs/2.json", INSPECT)  # the task was tried again
    assert len(collect(tmp_path)) == 3
    write(tmp_path, "logs/2.json", INSPECT | {"results": {"scores": []}})
    assert problems(tmp_path) == ("logs/2.json: Inspect's log of security/guide has no metrics",)


@pytest.mark.parametrize("status", ["success", "started"])
def test_a_log_that_was_cut_short_is_a_problem(tmp_path: Path, status: str) -> None:
    """Another log beside it is whole, and half of the results would be taken for all of them."""
    write(tmp_path, "logs/whole.json", INSPECT)
    cut = json.dumps(INSPECT | {"status": status}, indent=2)[:-20]
    for name in ("logs/cut.json", "elsewhere/cut.json", "logs/deep/cut.json"):
        write(tmp_path, name, cut)
    write(tmp_path, "elsewhere/own.json", json.dumps(LM_EVAL)[:-20])
    write(tmp_path, "elsewhere/rows.json", '{"a": 1}\n{"a": 2}\n')
    assert [problem.partition(":")[0] for problem in problems(tmp_path)] == [
        "elsewhere/cut.json is broken",
        "elsewhere/own.json is broken",
        "logs/cut.json is broken",
        "logs/deep/cut.json is broken",
    ]


def test_a_log_of_inspect_whose_samples_failed(tmp_path: Path) -> None:
    """Inspect calls such a log a success where --fail-on-error allows so many failures."""
    part = copy.deepcopy(INSPECT)
    part["results"]["completed_samples"] = 6
    write(tmp_path, "logs/1.json", part)
    assert problems(tmp_path) == ("logs/1.json: Inspect's log of security/guide lacks 2 of its samples, which failed",)
    write(tmp_path, "logs/2.json", INSPECT)  # the task was tried again
    assert {one.file for one in collect(tmp_path)} == {"logs/2.json"}


def test_metrics_are_held_against_those_of_other_lambdas() -> None:
    here = of_command({"a": {"x": 1, "y": 2}})
    assert compare_with(here, set()) == ([], [])
    assert compare_with(here, {("a", "command/x"), ("a", "command/y")}) == ([], [])
    others = {("a", "command/x"), ("b", "command/x"), ("a", "lm_eval/y")}
    assert compare_with(here, others) == (["lm_eval/y of a", "command/x of b"], ["command/y of a"])


def test_json_that_no_table_can_hold_is_a_problem_of_one_lambda(tmp_path: Path) -> None:
    huge = 10**400
    write(tmp_path, "metrics.json", "[" * 100_000)
    (problem,) = problems(tmp_path)
    assert problem.startswith("metrics.json is broken: ")
    (tmp_path / "metrics.json").write_text('{"a": {"m": 1, "m": 2}}')
    assert problems(tmp_path) == ("metrics.json is broken: the key 'm' stands twice in one object: keep one of them",)
    write(tmp_path, "metrics.json", {"a": {"m": huge}})
    (problem,) = problems(tmp_path)
    assert problem.startswith("metrics.json cannot be used: ")
    write(tmp_path, "metrics.json", {"a": {"m": 1, "n": 2**63}})
    assert "n of a is 9223372036854775808" in problems(tmp_path)[0]
    (tmp_path / "metrics.json").unlink()
    for odd in ({"sample_len": huge}, {"sample_len": -1}, {"acc,none": huge}, {"sample_count": [1]}):
        other = copy.deepcopy(LM_EVAL)
        other["n-samples"] = {}
        other["results"]["arc"] |= odd
        write(tmp_path, "results_1.json", other)
        (problem,) = problems(tmp_path)
        assert problem.startswith("results_1.json cannot be used: "), odd
    (tmp_path / "results_1.json").unlink()
    log = copy.deepcopy(INSPECT)
    log["results"]["scores"][0]["metrics"]["accuracy"] = 0.5
    write(tmp_path, "logs/1.json", log)
    (problem,) = problems(tmp_path)
    assert problem.startswith("logs/1.json cannot be used: ")


def test_infinities_are_no_values() -> None:
    found = of_command({"a": {"m": math.inf, "k": -math.inf, "x": 1.0, "x_stderr": math.inf}})
    assert [(one.metric, one.value, one.standard_error) for one in found] == [
        ("m", None, None),
        ("k", None, None),
        ("x", 1.0, None),
    ]
