"""sweep.json and plan.json are records: what is read is what was written, and a command reads each once."""

import ast
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from calibration.analyse import analyse, write_metrics
from calibration.report.write import write_report
from contract.commit import commit_json
from contract.errors import InputError
from contract.records import (
    Asked,
    EachRecord,
    LineRecord,
    ParentRecord,
    SweepRecord,
    TaskRecord,
    read_asked,
    read_plan,
    read_sweep,
)
from contract.rundir import RunDir
from tests.support.paths import ROOT
from tests.support.sources import parsed
from tests.support.tables import add_prompts, add_samples, add_scores, add_task

SWEEP = SweepRecord(
    pair={"base": ParentRecord("/base", None, "b0", "t0"), "aligned": ParentRecord("org/aligned", "c1", "a1", "t1")},
    engine={"device": "cpu", "extra": {"seed": 1}},
    versions={"vllm": "0.32.0"},
    line=LineRecord("linear", "", "shared", {"lm_head.weight": 3}, True),
    schema=1,
    tokenizer="base",
)
SCORED = TaskRecord(
    lambdas=("0", "0.5"), shards=((0, 4), (4, 9)), costs=(7, 8), file="/a.jsonl", sha256="s", requests_sha256="r",
    documents=4, requests=9, format="cloze", shots=0, seed=0, template="cloze 1", duplicates=0,
)  # fmt: skip
SAMPLED = TaskRecord(
    lambdas=("1",), shards=((0, 2),), costs=(9,), scored_as="samples", file="/p.jsonl", sha256="s", requests_sha256="r",
    limit=2, documents=2, requests=2, samples=3, temperature=0.5, max_tokens=8, stop_token_ids=(0, 7),
)  # fmt: skip
WITH_PMI = dataclasses.replace(SCORED, pmi=True)
ANSWERED = dataclasses.replace(
    SAMPLED, scored_as="answers", format="generate", shots=1, seed=0, top_p=0.9, top_k=5, until=("\n",), normaliser="text 2",
    rescored={"-0.5": ("0", "0.5"), "0": ("0.5",)},
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def commit(run: RunDir, sweep: SweepRecord, plan: dict[str, TaskRecord]) -> None:
    commit_json(run.sweep_json, sweep.to_json())
    commit_json(run.plan_json, {"tasks": {name: task.to_json() for name, task in plan.items()}})


def test_what_is_written_is_read(run: RunDir) -> None:
    commit(run, SWEEP, {"quiz": SCORED, "stories": SAMPLED})
    assert read_sweep(run) == SWEEP
    assert read_plan(run) == {"quiz": SCORED, "stories": SAMPLED}
    tasks = json.loads(run.plan_json.read_text())["tasks"]
    assert tasks["quiz"].keys() & {"samples", "temperature", "max_tokens", "stop_token_ids"} == set()
    assert tasks["stories"].keys() & {"format", "shots", "seed", "template", "duplicates"} == set()
    assert tasks["stories"]["stop_token_ids"] == [0, 7]
    assert tasks["quiz"]["limit"] is None
    assert (SCORED.completion, SAMPLED.completion) == ("tokens", "generations")


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        (
            Asked({"quiz": SCORED, "stories": SAMPLED, "sums": ANSWERED, "pmi": WITH_PMI}, 0.01, None),
            {"tasks", "margin"},
        ),
        (Asked({"stories": dataclasses.replace(SAMPLED, system_prompt="Be brief.")}, None, None), {"tasks"}),
        (Asked({}, None, EachRecord(("python", "ask.py"), {"ask.py": "s"}, ("0", "1"))), {"tasks", "each"}),
    ],
    ids=["tasks", "without a margin", "a command"],
)
def test_a_plan_that_is_read_and_written_again_has_the_same_bytes(run: RunDir, asked: Asked, keys: set[str]) -> None:
    commit_json(run.plan_json, asked.to_json())
    before = run.plan_json.read_bytes()
    assert read_asked(run) == asked
    commit_json(run.plan_json, read_asked(run).to_json())
    assert run.plan_json.read_bytes() == before
    assert run.plan().keys() == keys  # what nobody asked for is absent, and no null


def test_the_parents_that_a_run_can_be_at() -> None:
    assert SWEEP.parents == {"base": "0", "aligned": "1"}
    weighed = dataclasses.replace(SWEEP, line=LineRecord(ends_at_aligned=False))
    assert weighed.parents == {"base": "0"}
    assert dataclasses.replace(SWEEP, line=None).parents == SWEEP.parents
    several = dataclasses.replace(SWEEP, pair={role: ParentRecord() for role in ("base", "aligned.b", "aligned.a")})
    assert several.names == ("a", "b")
    assert several.parents == {"base": "a=0,b=0", "a": "a=1,b=0", "b": "a=0,b=1"}


def test_files_of_other_versions_are_read(run: RunDir) -> None:
    commit_json(run.sweep_json, {"pair": {"base": {"new": 1}}, "engine": {}, "versions": {}, "new": 1})
    commit_json(run.plan_json, {"tasks": {"quiz": {"shards": [[0, 1]], "lambdas": ["0"], "new": 1}}})
    assert read_sweep(run) == SweepRecord({"base": ParentRecord()}, {}, {})
    assert read_plan(run) == {"quiz": TaskRecord(lambdas=("0",), shards=((0, 1),))}


@pytest.mark.parametrize("tasks", [[], {"quiz": 3}, {"quiz": {"shards": 3}}, {"quiz": {"shards": [[0]]}}])
def test_a_damaged_plan_is_said_to_be_damaged(run: RunDir, tasks: object) -> None:
    commit(run, SWEEP, {})
    commit_json(run.plan_json, {"tasks": tasks})
    with pytest.raises(InputError, match=r"plan\.json is damaged"):
        read_plan(run)


def test_a_report_reads_each_file_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("one", "two"):
        add_task(run, task, [2, 2, 2, 2], ("0", "1"))
        for lam in ("0", "1"):
            add_scores(run, task, lam, {request: [-1.0 - request % 2] for request in range(8)})
    add_prompts(run, "stories", 2, ("0", "1"))
    for lam in ("0", "1"):
        add_samples(run, "stories", lam, {0: ["a b", "c"], 1: ["d", "e f"]})
    reads: Counter[str] = Counter()
    read = RunDir._json
    monkeypatch.setattr(
        RunDir, "_json", lambda self, path, keys: (reads.update([path.name]), read(self, path, keys))[1]
    )
    analysis = analyse(run, resamples=10)
    write_metrics(run, analysis)
    write_report(run, analysis)
    assert reads == {"sweep.json": 1, "plan.json": 1}


def test_only_records_know_the_files_as_they_are() -> None:
    raw = set()
    for folder in ("contract", "merge", "calibration", "serve", "ray_jobs", "lambdasweep"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            if not re.search(r"\b(sweep|plan)\s*\(", source):  # most files are not worth being parsed
                continue
            for node in ast.walk(parsed(source)):
                is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args
                if is_call and node.func.attr in ("sweep", "plan"):
                    raw.add(str(path.relative_to(ROOT)))
    assert raw == {"contract/records.py"}
