"""A run directory is of one sweep, which goes on where it stopped, and meets damage without scoring anything wrongly."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ray_jobs.driver
from contract import schemas
from contract.commit import commit_table
from contract.rundir import RunDir
from lambdasweep import record
from ray_jobs.driver import DriverResult
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import (
    IRON,
    WATER,
    Result,
    changed_copy,
    contents,
    score_all,
    write_task,
)

pytestmark = pytest.mark.usefixtures("few_resamples")

# One directory, one sweep


def test_a_sweep_is_recorded_before_its_units_are_handed_out(
    begun: RunDir, handed: list[dict[str, Any]], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    sweep, plan = begun.sweep(), begun.plan()
    assert [sweep["pair"][role]["source"] for role in ("base", "aligned")] == list(map(str, pair))
    assert sweep["engine"]["dtype"] == "float32"
    assert sweep["versions"].keys() >= {"lambdasweep", "vllm", "torch", "transformers"}
    assert plan["tasks"]["metals"]["lambdas"] == ["0", "0.5", "1"]
    assert plan["tasks"]["metals"]["file"] == str(tmp_path / "metals.jsonl")
    (call,) = handed
    assert [unit.key for unit in call["units"]] == [("metals", lam, 0) for lam in ("0", "0.5", "1")]
    assert call["spec"].identity["base"] == sweep["pair"]["base"]["fingerprint"]
    assert begun.requests("metals").is_file()


def test_a_plan_for_a_run_of_other_parents_says_so(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], pair: tuple[Path, Path]
) -> None:
    told = lambdasweep("plan", *flags(base=pair[1], aligned=pair[0])).out
    for role, before in zip(("base", "aligned"), pair, strict=True):
        assert f"warning: {begun.root} was begun with {role} from {before}, and here it is " in told
    assert "was begun with" not in lambdasweep("plan", *flags()).out


def test_requests_that_no_plan_names_are_written_anew(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    """A first command that was killed before it wrote the plan leaves requests of a file that may change since."""
    before = begun.requests("metals").read_bytes()
    begun.sweep_json.unlink()
    begun.plan_json.unlink()
    begun.driver_json.unlink()
    begun.history_json.unlink()
    begun.metrics_parquet.unlink()
    shutil.rmtree(begun.root / "report")
    write_task(tmp_path / "metals.jsonl", WATER, IRON)
    assert lambdasweep("run", *flags()).code == 0
    assert begun.requests("metals").read_bytes() != before


def test_the_same_command_again_changes_nothing(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    before = contents(begun.root)
    assert lambdasweep("run", *flags()).code == 0
    # It is the same sweep with fewer engines.
    assert lambdasweep("run", *flags(lambdas="0.50,1.0", replicas=1)).code == 0
    assert contents(begun.root) == before
    assert [len(call["units"]) for call in handed] == [3, 3, 2]


def test_where_the_inputs_lie_does_not_matter(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    base = changed_copy(pair[0], tmp_path / "moved", lambda copy: None)
    task = shutil.copy(tmp_path / "metals.jsonl", tmp_path / "moved.jsonl")
    assert lambdasweep("run", *flags(base=base, task=f"metals={task}")).code == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "letters"}, 'task metals: format was "cloze" and is "letters" now'),
        ({"shots": 1}, "task metals: shots was 0 and is 1 now"),
        ({"limit": 1}, "task metals: limit was null and is 1 now"),
        ({"dtype": "bfloat16"}, 'engine.dtype was "float32" and is "bfloat16" now'),
        ({"max_model_len": 100}, "engine.max_model_len was 512 and is 100 now"),
        ({"tp": 2}, "engine.tensor_parallel was 1 and is 2 now"),
        ({"pp": 2}, "engine.pipeline_parallel was 1 and is 2 now"),
        ({"engine": "block_size=64"}, "engine.block_size was 32 and is 64 now"),
        ({"engine": "seed=7"}, "engine.extra.seed was null and is 7 now"),
        ({"tokenizer": "aligned"}, 'tokenizer was "base" and is "aligned" now'),
        ({"method": "slerp"}, 'line.method was "linear" and is "slerp" now'),
        ({"lam_map": "mlp=0.50"}, 'line.lam_map was "" and is "mlp=0.5" now'),
        ({"vocab": "shared"}, 'line.vocab was "strict" and is "shared" now'),
    ],
)
def test_a_changed_setting_is_another_sweep(
    begun: RunDir, refused: Callable[..., Result], changes: dict[str, object], says: str
) -> None:
    result = refused(**changes)
    assert result.err.startswith(
        f"lambdasweep: {begun.root} holds another sweep; give another --out, or the settings it was started with\n"
    )
    assert says in result.problems


def test_a_run_takes_no_longer_requests_than_it_began_with(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    refused: Callable[..., Result],
    tmp_path: Path,
) -> None:
    assert lambdasweep("run", *flags(max_model_len=100)).code == 0
    planned = re.search(r"requests up to 100 tokens \(the longest has \d+, (.*?)\)", lambdasweep("plan", *flags()).out)
    assert planned is not None
    assert planned[1] == "and the run began with so many"
    long = write_task(tmp_path / "long.jsonl", IRON | {"query": "word " * 150})
    assert refused(task=f"long={long}").problems == [
        "engine.max_model_len was 100 and is 512 now: --max-model-len 100 keeps it, and quarantines longer requests"
    ]
    short = write_task(tmp_path / "short.jsonl", WATER)
    assert lambdasweep("run", *flags(task=f"short={short}")).code == 0
    assert RunDir(tmp_path / "run").sweep()["engine"]["max_model_len"] == 100


def test_changed_weights_are_another_sweep(begun: RunDir, refused: Callable[..., Result], tmp_path: Path) -> None:
    before = begun.sweep()["pair"]["aligned"]["fingerprint"]
    aligned = write_checkpoint(tmp_path / "other", seed=2)
    (problem,) = refused(plan=False, aligned=aligned).problems
    assert problem.startswith(f'pair.aligned.fingerprint was "{before[:50]}')


def test_a_changed_task_file_is_another_sweep(begun: RunDir, refused: Callable[..., Result], tmp_path: Path) -> None:
    write_task(tmp_path / "metals.jsonl", IRON, WATER | {"gold": 0})
    (problem,) = refused().problems  # it follows that its requests are others, so that is not said
    assert problem.startswith("task metals: sha256 was ")


def test_another_version_is_another_sweep(
    begun: RunDir, refused: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = record.versions() | {"vllm": "0.99"}
    monkeypatch.setattr("lambdasweep.record.versions", lambda: versions)
    (problem,) = refused().problems
    assert problem.startswith("versions.vllm was ")
    assert problem.endswith(' and is "0.99" now')


def test_damaged_records_are_named(begun: RunDir, refused: Callable[..., Result]) -> None:
    begun.sweep_json.write_text('{"engine": {}}')
    (problem,) = refused().problems
    assert problem == (
        f"{begun.sweep_json} is damaged (it lacks engine, pair, versions): restore it, or start again in another directory"
    )


def test_more_points_and_tasks_grow_the_plan(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[Any],
    tmp_path: Path,
) -> None:
    sweep, first = begun.sweep_json.read_bytes(), begun.plan()["tasks"]["metals"]
    assert lambdasweep("run", *flags(lambdas="1.25,-0.5,0.5")).code == 0
    other = f"wet={write_task(tmp_path / 'wet.jsonl', WATER)}"
    assert lambdasweep("run", *flags(lambdas="0", task=other, format="letters")).code == 0
    tasks = begun.plan()["tasks"]
    assert tasks["metals"] == first | {"lambdas": ["-0.5", "0", "0.5", "1", "1.25"]}
    assert (tasks["wet"]["lambdas"], tasks["wet"]["format"]) == (["0"], "letters")
    assert begun.sweep_json.read_bytes() == sweep
    assert [sorted({unit.lam for unit in call["units"]}) for call in handed[1:]] == [["-0.5", "0.5", "1.25"], ["0"]]


def test_a_second_driver_is_refused(begun: RunDir, refused: Callable[..., Result]) -> None:
    with begun.lock():
        (problem,) = refused(plan=False).problems
    assert problem == f"another lambdasweep process is writing to {begun.root}: wait for it, or stop it first"


def test_leftovers_of_a_killed_writer_are_removed(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    leftover = begun.unit("tokens", "metals", "0", 0).with_name(".shard-00000.parquet.0f.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"PAR1")
    assert lambdasweep("status", begun.root).code == 0
    assert leftover.exists()
    assert lambdasweep("run", *flags()).code == 0
    assert not leftover.exists()


# How a sweep ends


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        ({"interrupted": True}, 130, "stopped; what is committed is kept, and the same command goes on from there\n"),
        (
            {"given_up": True},
            1,
            "lambdasweep: 1 unit failed on every try; all others are committed. Run the same command again",
        ),
    ],
)
def test_a_sweep_that_does_not_finish_says_how_to_go_on(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    outcome: dict[str, bool],
    code: int,
    says: str,
) -> None:
    def run_units(spec, units, *_: object) -> DriverResult:
        given_up = ((units[1], "CUDA error"),) if "given_up" in outcome else ()
        return DriverResult(done=0, given_up=given_up, interrupted="interrupted" in outcome, hardware=())

    monkeypatch.setattr(ray_jobs.driver, "run_units", run_units)
    result = lambdasweep("run", *flags())
    assert result.code == code
    assert result.err.startswith(says)
    assert ("  - metals λ = 0.5 shard 0: CUDA error\n" in result.err) == ("given_up" in outcome)


def test_quarantined_requests_show_in_the_exit_status(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    rows = pa.Table.from_pylist([{"request_id": 0, "reason": "too long"}], schema=schemas.QUARANTINE)
    commit_table(begun.unit("quarantine", "metals", "0.5", 0), rows)
    commit_table(begun.unit("tokens", "metals", "0.5", 0), schemas.TOKENS.empty_table())
    result = lambdasweep("run", *flags())
    assert result.code == 3
    assert f"some requests are quarantined: lambdasweep status {begun.root} counts them\n" in result.err
    assert lambdasweep("run", *flags(lambdas="0")).code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "reads"),
    [
        (["status", "RUN"], {"sweep.json": 1, "plan.json": 1}),
        # The plan may grow while it is watched.
        (["status", "RUN", "--watch"], {"sweep.json": 1, "plan.json": 2}),
        (["report", "RUN"], {"sweep.json": 1, "plan.json": 1}),
        (["report", "RUN", "--lm-eval", "OUT"], {"sweep.json": 1, "plan.json": 1}),
        (["export", "RUN", "--out", "OUT"], {"sweep.json": 1, "plan.json": 1}),
        (["plan", "FLAGS"], {"sweep.json": 1, "plan.json": 1}),
        # Another driver may have written before this one holds the directory.
        (["run", "FLAGS"], {"sweep.json": 2, "plan.json": 2}),
        (["run", "FLAGS", "--refine", "2"], {"sweep.json": 2, "plan.json": 2}),
    ],
)
def test_a_command_reads_a_record_once(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    reads: dict[str, int],
) -> None:
    score_all(begun)
    found = Counter[str]()
    read = RunDir._json

    def counted(run: RunDir, path: Path, keys: set[str]) -> dict[str, Any]:
        found[path.name] += 1
        return read(run, path, keys)

    monkeypatch.setattr(RunDir, "_json", counted)
    places = {"RUN": [begun.root], "OUT": [tmp_path / "new"], "FLAGS": flags()}
    result = lambdasweep(*(one for word in command for one in places.get(word, [word])))
    assert found == reads
    if command[0] == "export":  # the run is too small for a λ*, which its tables told
        assert "has no results of a task with choices, so there is no λ*" in result.err
    else:
        assert result.code == 0, result.err


# Damage


@pytest.mark.slow
def test_damaged_tables_are_named_and_scored_again(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    """Every command meets a table that is cut short, and one of 0 bytes; none of them ends in a traceback."""
    score_all(begun)
    assert lambdasweep("report", begun.root).err == ""
    paths = [begun.unit("tokens", "metals", lam, 0) for lam in ("0", "1")]
    os.truncate(paths[0], paths[0].stat().st_size - 20)
    os.truncate(paths[1], 0)
    names = [str(path.relative_to(begun.root)) for path in paths]
    status = lambdasweep("status", begun.root)
    assert (status.code, status.err) == (0, "")
    assert "damaged tables, not counted as done; the command that made them scores them again:" in status.out
    assert "metals: 1/3 units" in status.out
    report = lambdasweep("report", begun.root)
    assert report.code == 0
    assert "warning: damaged tables count as absent; the same sweep scores them again:" in report.err
    export = lambdasweep("export", begun.root, "--out", begun.root.parent / "best")
    assert (export.code, export.err.count("damaged tables, so there is no λ*")) == (2, 1)
    for said in (status.out, report.err, export.err, begun.index_html.read_text(encoding="utf-8")):
        assert all(name in said for name in names), said
    assert lambdasweep("plan", *flags()).out.count("units     2 to do of 3 (3 λ)") == 1
    run = lambdasweep("run", *flags())
    assert f"warning: damaged tables are moved to {begun.root / 'damaged'}" in run.err
    assert all(name in run.err for name in names)
    assert [unit.key for unit in handed[-1]["units"]] == [("metals", lam, 0) for lam in ("0", "1")]
    assert all((begun.root / "damaged" / name).is_file() for name in names)
    assert "damaged" not in lambdasweep("status", begun.root).out


@pytest.mark.slow
def test_a_damaged_requests_table_is_written_anew(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    score_all(begun)
    path = begun.requests("metals")
    before = path.read_bytes()
    os.truncate(path, 100)
    report = lambdasweep("report", begun.root)
    assert report.code == 1
    assert f"{path} cannot be read (" in report.err
    assert report.err.endswith("): run the same sweep again, which writes it anew\n")
    lambdasweep("run", *flags())
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_table_whose_rows_are_spoiled_is_found_when_it_is_read(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]]
) -> None:
    score_all(begun)
    path = begun.unit("tokens", "metals", "1", 0)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    run = lambdasweep("run", *flags())
    assert run.code == 1
    assert "damaged tables were found at the end: run the same command again, which scores them anew" in run.err
    assert not path.exists()
    assert "metals: 2/3 units" in lambdasweep("status", begun.root).out


@pytest.mark.slow
def test_a_table_of_another_lambda_is_named_and_scored_again(
    begun: RunDir, lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], handed: list[dict[str, Any]]
) -> None:
    score_all(begun)
    path = begun.unit("tokens", "metals", "1", 0)
    shutil.copy(begun.unit("tokens", "metals", "0.5", 0), path)
    says = (
        "tokens/task=metals/lambda=1/shard-00000.parquet is another table, moved or copied there: "
        "that of task metals, λ = 0.5, shard 0"
    )
    status = lambdasweep("status", begun.root)
    assert "metals: 2/3 units" in status.out
    assert says in status.out
    report = lambdasweep("report", begun.root)
    assert (report.code, says in report.err) == (0, True)
    run = lambdasweep("run", *flags())
    assert says in run.err
    assert [unit.key for unit in handed[-1]["units"]] == [("metals", "1", 0)]
    assert not path.exists()
