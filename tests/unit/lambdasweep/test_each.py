"""`lambdasweep each` runs a command at every λ, refuses false results, and survives kills. No engine is started."""

import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from calibration.analyse import analyse
from calibration.report.write import write_report
from calibration.terminal.lm_eval import outcome_table
from calibration.terminal.tables import render
from contract import schemas
from contract.commit import METADATA_KEY, commit_json, commit_table
from contract.errors import RunMismatchError
from contract.rundir import RunDir
from lambdasweep import cli, entry
from lambdasweep.each.children import Children
from lambdasweep.each.command import Command, environment, settle
from lambdasweep.each.run import _prepared
from lambdasweep.each.server import Server, server_flags
from lambdasweep.monitor.status import describe
from lambdasweep.takehome.serve import name_at
from tests.support.command_line import Result, contents
from tests.support.forked import fork
from tests.support.paths import ROOT
from tests.support.reports import undrawn
from tests.support.waiting import until

STAND_IN = ROOT / "tests" / "support" / "stand_in_server.py"
Each = Callable[..., Result]

# `site` and `urllib` would take most of the time of these short commands.
PYTHON = (sys.executable, "-S")

# The evaluator asks the server where it is, as a user's would, and writes what it saw.
EVALUATOR = """
import json, os, socket
def ask(path, body=b""):
    host, _, port = os.environ["OPENAI_BASE_URL"].removeprefix("http://").removesuffix("/v1").partition(":")
    lines = ["POST" if body else "GET", " ", path, " HTTP/1.0\\r\\nContent-Length: ", str(len(body))]
    lines += ["\\r\\nAuthorization: Bearer ", os.environ["OPENAI_API_KEY"], "\\r\\n\\r\\n"]
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as answer:
        connection.sendall("".join(lines).encode() + body)
        status, _, rest = answer.read().partition(b"\\r\\n")
    if status.split()[1:2] != [b"200"]:
        raise OSError(status)
    return json.loads(rest.partition(b"\\r\\n\\r\\n")[2])
there = ask("/v1/lambda")["lam"]
lam = os.environ["LAMBDASWEEP_LAM"]
out = os.environ["LAMBDASWEEP_OUT"]
assert there == lam and os.path.samefile(out, os.getcwd()) and os.listdir(out) == []
if not os.path.exists(os.environ["SEEN"] + ".cached"):
    ask("/v1/completions", json.dumps({"model": os.environ["LAMBDASWEEP_MODEL"]}).encode())
with open(os.environ["SEEN"], "a") as file:
    file.write(lam + "\\n")
"""
MEASURES = (
    'open("metrics.json", "w").write(json.dumps({"quiz": {"score": float(lam) + 1, "score_stderr": 0.5, "n": 9}}))\n'
)


@pytest.fixture
def evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the command of a test: the evaluator, with more lines before it measures."""
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))

    def make(before: str = "", measures: str = MEASURES) -> Path:
        path = tmp_path / "evaluate.py"
        path.write_text(EVALUATOR + before + measures)
        return path

    return make


@pytest.fixture
def each(
    lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Each:
    """Run `lambdasweep each` with a server that has no engine, without the page, which takes a second."""
    monkeypatch.setattr("lambdasweep.each.server.serve_command", lambda: [*PYTHON, str(STAND_IN)])
    monkeypatch.setattr("lambdasweep.each.server._LOOK", 0.02)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "server"))
    monkeypatch.setattr(cli, "write_page", lambda run, analysis: None)
    monkeypatch.chdir(tmp_path)

    def run(*command: object, lambdas: str = "0,0.5,1", flags: tuple[object, ...] = ()) -> Result:
        sound = ["--base", pair[0], "--aligned", pair[1], "--lambdas", lambdas, "--out", tmp_path / "run"]
        return lambdasweep("each", *sound, *flags, *(["--", *command] if command else []))

    return run


def seen(tmp_path: Path) -> list[str]:
    path = tmp_path / "seen"
    return path.read_text().split() if path.exists() else []


def server_lines(tmp_path: Path) -> list[str]:
    path = tmp_path / "server"
    return [line for line in path.read_text().splitlines() if not line.startswith("process")] if path.exists() else []


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_command_runs_at_every_lambda_of_one_server(each: Each, evaluator: Any, tmp_path: Path) -> None:
    evaluator()
    result = each(*PYTHON, "evaluate.py", lambdas="1,0.5,0")
    assert result.code == 0, result.err
    assert seen(tmp_path) == ["0", "0.5", "1"]
    began, *rest = server_lines(tmp_path)
    assert rest == ["moved to 0.5", "moved to 1", "ended"]
    assert "--lam 0 --method linear --vocab strict --parents auto -- --port" in began
    # A cache of answers that goes by the name of the model keeps λs apart.
    names = ("aligned-lambda", "aligned-lambda-0", "aligned-lambda-0.5", "aligned-lambda-1")
    assert began.endswith(f"--served-model-name {' '.join(names)}")
    assert os.environ.get("VLLM_API_KEY") is None
    assert "λ = 0.5: 1 metric of 1 task in" in result.err
    assert "quiz, by the command" in result.out
    assert re.search(r"0\.5 +1\.5000 +0\.520 to 2\.480 +9", result.out), result.out
    run = RunDir(tmp_path / "run")
    rows = pq.read_table(run.metrics_parquet).to_pylist()
    found = {(row["point"], row["task"], row["metric"], row["value"], row["n"]) for row in rows}
    assert found == {(lam, "quiz", "command/score", float(lam) + 1, 9) for lam in ("0", "0.5", "1")}
    for row in rows:
        assert (row["ci_low"], row["ci_high"]) == (row["value"] - 0.98, row["value"] + 0.98)  # 1.96 · 0.5
        assert row["resamples"] is None
    identity = json.loads(pq.read_schema(run.measured("0.5")).metadata[METADATA_KEY])
    assert identity["command"] == [*PYTHON, str(tmp_path / "evaluate.py")]
    assert identity["base"] == run.sweep()["pair"]["base"]["fingerprint"]
    assert identity["engine"]["served"] is True
    assert identity["engine"]["arguments"]["block_size"] == 32  # the server starts with these arguments on a CPU


@pytest.mark.slow
def test_again_nothing_runs_and_more_lambdas_run_alone(each: Each, evaluator: Any, tmp_path: Path) -> None:
    command = evaluator()
    assert each(*PYTHON, command, lambdas="0,1").code == 0
    before = {name: data for name, data in contents(tmp_path / "run").items() if "measured" in name}
    assert each(*PYTHON, command, lambdas="0,1").code == 0
    assert len(server_lines(tmp_path)) == 3  # no second server was started
    result = each(*PYTHON, command, lambdas="0,0.25,1")
    assert (result.code, seen(tmp_path)) == (0, ["0", "1", "0.25"])
    assert "2 of 3 λs are measured already; 1 left" in result.err
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert RunDir(tmp_path / "run").plan()["each"]["lambdas"] == ["0", "0.25", "1"]


def test_a_server_that_takes_long_to_start_says_where_its_log_is(
    each: Each, evaluator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdasweep.monitor.phase.PATIENCE", 0.0)
    result = each(*PYTHON, evaluator(), lambdas="0")
    assert result.code == 0
    assert result.err.count(f"the server starts; its log is {tempfile.gettempdir()}/lambdasweep-server-") == 1


@pytest.mark.slow
def test_a_command_that_fails_is_told_and_the_others_go_on(each: Each, evaluator: Any, tmp_path: Path) -> None:
    command = evaluator(
        'if lam == "0.5" and not os.path.exists(os.environ["SEEN"] + ".mended"):\n'
        '    print("[red]one[/red]\\n\\nthe last words"); raise SystemExit(7)\n'
    )
    result = each(*PYTHON, command)
    assert result.code == 3
    assert seen(tmp_path) == ["0", "0.5", "1"]
    log = tmp_path / "run" / "each" / "lambda=0.5" / "command.log"
    assert (
        f"λ = 0.5: the command ended with status 7; {log} ends with\n    [red]one[/red]\n    the last words\n"
        in result.err
    )
    assert "nothing was measured at λ = 0.5: the same command tries there again" in result.err
    assert "quiz, by the command" in result.out
    assert list(describe(tmp_path / "run"))[-5:] == [
        "2/3 λs measured",
        "  left at λ 0.5",
        f"  the last try at λ 0.5 failed: the command ended with status 7; {log} ends with",
        "    [red]one[/red]",
        "    the last words",
    ]
    (tmp_path / "seen.mended").touch()
    again = each(*PYTHON, command)
    assert (again.code, seen(tmp_path)) == (0, ["0", "0.5", "1", "0.5"])
    assert (tmp_path / "run" / "aside" / "lambda=0.5.1" / "command.log").read_text().endswith("the last words\n")
    assert list(describe(tmp_path / "run"))[-1] == "3/3 λs measured"


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ('ask("/v1/lambda", b\'{"lam": "0.9"}\')\n', "the server was moved to λ = 0.9 while the command ran"),
        (
            'ask("/v1/lambda", b\'{"lam": "0.9"}\')\nask("/v1/lambda", json.dumps({"lam": lam}).encode())\n',
            "the server was moved away and back while the command ran",
        ),
        ("os.kill(os.getpid(), 9)\n", "the command was ended by signal 9"),
    ],
    ids=["moved", "moved back", "killed"],
)
def test_results_of_another_lambda_are_refused(
    each: Each, evaluator: Any, tmp_path: Path, before: str, says: str
) -> None:
    result = each(*PYTHON, evaluator(before), lambdas="0.5")
    assert result.code == 3
    assert says in result.err
    assert not RunDir(tmp_path / "run").all_measured()
    assert not (tmp_path / "run" / "metrics.parquet").exists()


def test_results_without_a_request_are_refused(each: Each, evaluator: Any, tmp_path: Path) -> None:
    """The results may have come out of a cache that another λ filled."""
    (tmp_path / "seen.cached").touch()
    result = each(*PYTHON, evaluator(), lambdas="0.5")
    assert (result.code, "λ = 0.5: the command asked the server nothing" in result.err) == (3, True)
    assert not RunDir(tmp_path / "run").all_measured()


@pytest.mark.slow
def test_a_lambda_that_lacks_what_others_have_is_refused(each: Each, evaluator: Any, tmp_path: Path) -> None:
    measures = 'metrics = {"0": ["a"], "0.5": ["a", "b"], "1": ["b"]}[lam]\n'
    measures += 'open("metrics.json", "w").write(json.dumps({"quiz": dict.fromkeys(metrics, 1)}))\n'
    result = each(*PYTHON, evaluator(measures=measures))
    assert result.code == 3
    assert "warning: λ = 0.5 has command/b of quiz, which the λs measured before it lack" in result.err
    assert (
        "λ = 1: the command ended with status 0, and left out what other λs have\n    command/a of quiz" in result.err
    )
    assert list(RunDir(tmp_path / "run").all_measured()) == ["0", "0.5"]


@pytest.mark.slow
def test_a_file_of_the_command_that_changes_meanwhile_stops_all(each: Each, evaluator: Any, tmp_path: Path) -> None:
    """Results would otherwise stand under the checksum of another file."""
    command = evaluator('if lam == "0.5":\n    open(__file__, "a").write("#")\n')
    result = each(*PYTHON, command)
    assert (result.code, result.err.endswith(f"\n  - {command}\n")) == (2, True)
    assert "files of the command changed meanwhile, so nothing is kept of λ = 0.5" in result.err
    assert seen(tmp_path) == ["0", "0.5"]
    assert list(RunDir(tmp_path / "run").all_measured()) == ["0"]
    assert not settle([str(command)], tmp_path, []).changed()
    gone = Command((str(command),), {str(command): "abc", str(tmp_path / "gone"): "abc"})
    assert gone.changed() == [str(command), str(tmp_path / "gone")]


def test_points_of_several_checkpoints_have_names_without_separators() -> None:
    assert name_at("a-b-lambda", "dpo=0.35,sft=1") == "a-b-lambda-dpo-0.35-sft-1"


def test_results_that_cannot_be_read_are_a_failure(each: Each, evaluator: Any, tmp_path: Path) -> None:
    result = each(*PYTHON, evaluator(measures='open("metrics.json", "w").write("[]")'), lambdas="0")
    assert result.code == 3
    assert (
        "λ = 0: the command ended with status 0, and its results cannot be used\n    metrics.json is not" in result.err
    )


@pytest.mark.slow
def test_what_a_command_leaves_running_is_ended(each: Each, evaluator: Any, tmp_path: Path) -> None:
    """The process would ask the server at the next λ, and take the answers for those of this one."""
    left = (
        "import subprocess, sys\n"
        'process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])\n'
        'open(os.path.join(os.environ["SEEN"] + ".left"), "a").write(f"{process.pid}\\n")\n'
    )
    assert each(*PYTHON, evaluator(left), lambdas="0,1").code == 0
    for pid in (tmp_path / "seen.left").read_text().split():
        until(lambda pid=pid: not lives(int(pid)), 10)


def test_what_leaves_the_group_of_the_command_is_ended(tmp_path: Path) -> None:
    """`timeout` and `set -m` make groups of their own; a killed driver's keeper ends them as well as the driver does."""
    said = tmp_path / "pids"
    waits = "import os, sys, time; os.setpgid(0, 0); print(os.getpid(), flush=True); time.sleep(600)"
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', {waits!r}])\n"

    def started(children: Children, more: str) -> list[int]:
        with open(said, "wb") as log:
            process = children.start([*PYTHON, "-c", code + more], os.environ, log)
        until(lambda: said.read_text().endswith("\n"), 30)
        return [process.pid, int(said.read_text())]

    with Children() as children:
        alone, left = started(children, "")
        process = next(iter(children._running))
        assert process.pid == alone
        until(lambda: process.poll() is not None, 30)
        assert lives(left)
        children.end(process)
        assert not lives(left)
        both = started(children, "import time; time.sleep(600)")
        assert all(map(lives, both))
        children._running.clear()  # only the keeper knows of them, as if this process were gone
    until(lambda: not any(map(lives, both)), 10)


def test_a_command_that_cannot_be_started_is_forgotten(tmp_path: Path) -> None:
    """The number may become that of somebody else's process, which the keeper would end."""
    with Children() as children, open(tmp_path / "log", "wb") as log:
        written: list[bytes] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", lambda _, data: written.append(data))
            with pytest.raises(FileNotFoundError):
                children.start([str(tmp_path / "none")], os.environ, log)
    assert written == [b"-1\n"]  # the child wrote into its own copy of memory


def test_attempts_have_names_of_their_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert _prepared(run, "0.5") == tmp_path / "each" / "lambda=0.5" / "out-1"
    assert _prepared(run, "0.5").name == "out-2"
    assert _prepared(run, "0.5").name == "out-3"
    assert (tmp_path / "aside" / "lambda=0.5.2" / "out-2").is_dir()
    shutil.rmtree(tmp_path / "aside" / "lambda=0.5.1")  # counting the files would give the number 2 again
    assert _prepared(run, "0.5").name == "out-4"
    assert (tmp_path / "aside" / "lambda=0.5.3" / "out-3").is_dir()
    shutil.rmtree(tmp_path / "aside")
    assert _prepared(run, "0.5").name == "out-5"
    shutil.rmtree(tmp_path / "each")
    assert _prepared(run, "0.5").name == "out-5"
    assert _prepared(run, "1").name == "out-1"


@pytest.mark.slow
def test_a_server_that_dies_or_cannot_move_ends_all(
    each: Each, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = 'if lam == "0.5":\n    try: ask("/die", b"{}")\n    except OSError: pass\n    import time; time.sleep(600)\n'
    result = each(*PYTHON, evaluator(dies))
    assert result.code == 1
    assert "the server ended with status 9; what is measured is kept, and the same command goes on" in result.err
    assert list(RunDir(tmp_path / "run").all_measured()) == ["0"]
    (log,) = re.findall(r"/\S+lambdasweep-server-\S+\.log", result.err)
    Path(log).unlink()
    evaluator()
    monkeypatch.setenv("STAND_IN_BREAKS_AT", "1")
    (tmp_path / "run").rename(tmp_path / "other")
    result = each(*PYTHON, "evaluate.py")
    assert result.code == 1
    assert "the server failed: the move to 1 failed, restart the server" in result.err
    Path(re.findall(r"/\S+lambdasweep-server-\S+\.log", result.err)[0]).unlink()
    assert list(RunDir(tmp_path / "run").all_measured()) == ["0", "0.5"]


@pytest.mark.parametrize(
    ("said", "problems"),
    [
        ("lambdasweep: the flags cannot be used\n  - one\n  - two", ["the flags cannot be used", "one", "two"]),
        ("vllm serve: error: unrecognized arguments: --odd 1", ["vllm serve: error: unrecognized arguments: --odd 1"]),
    ],
)
def test_what_the_server_refuses_is_bad_input_and_nothing_is_written(
    each: Each, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, problems: list[str]
) -> None:
    monkeypatch.setenv("STAND_IN_REFUSES", said)
    result = each(*PYTHON, evaluator(), flags=("--engine", "odd=1"))
    assert (result.code, result.problems) == (2, problems)
    assert not (tmp_path / "run").exists()


def test_bad_input_is_told_at_once(each: Each, lambdasweep: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "plain.txt").touch()
    result = lambdasweep("each", "--aligned", "x", "--lambdas", "0:1", "--out", "s3://b/r", "--tp", "0")
    assert result.code == 2
    assert result.problems == [
        "--base is missing",
        "the grid '0:1' cannot be used; write it like 0:1.5:0.1 or 0,0.25,1: '0:1' is not start:stop:step",
        "--out s3://b/r is in an object store, and a command writes files: give a directory",
        "--tp is 0: give 1 or more",
        "there is no command: give it after --, as in -- ./evaluate.sh",
    ]
    result = each("./plain.txt", flags=("--engine", "threads=2", "--engine", "port=1"))
    assert result.problems == [
        "--engine threads is of a sweep's engines: vLLM's server has no such argument",
        "--engine port is set by lambdasweep: leave it out",
        "./plain.txt cannot be executed: give a program, by its path or as the shell finds it",
    ]
    assert each("nothing-of-that-name").problems == [
        "nothing-of-that-name is no command: give a program, by its path or as the shell finds it"
    ]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "server").exists()
    assert "The command follows after --" in lambdasweep("each", "--odd", "1").err


def test_another_command_pair_or_engine_is_refused(
    each: Each, evaluator: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    command = evaluator()
    assert each(*PYTHON, command, lambdas="0").code == 0
    before = contents(tmp_path / "run")
    other = each(*PYTHON, command, "--fast", lambdas="0,1", flags=("--max-model-len", "128", "--vocab", "shared"))
    assert other.code == 2
    changed, python = "\n".join(other.problems), " ".join(PYTHON)
    assert "line.vocab was" in changed
    assert "engine.arguments.max_model_len was" in changed
    assert f"the command was {python} {command} and is {python} {command} --fast now" in changed
    evaluator("pass\n")
    (problem,) = each(*PYTHON, command, lambdas="0,1").problems
    assert problem.startswith(f"{command} was ")
    assert contents(tmp_path / "run") == before


def test_a_sweep_and_a_command_share_no_directory(
    each: Each, evaluator: Any, lambdasweep: Callable[..., Result], flags: Any, handed: Any, tmp_path: Path
) -> None:
    assert lambdasweep("run", *flags(out=tmp_path / "run")).code == 0
    result = each(*PYTHON, evaluator(), lambdas="0")
    assert (result.code, "belongs to a sweep of `lambdasweep run`" in result.err) == (2, True)
    (tmp_path / "run").rename(tmp_path / "swept")
    assert each(*PYTHON, evaluator(), lambdas="0").code == 0
    result = lambdasweep("run", *flags(out=tmp_path / "run"))
    assert (result.code, "is of `lambdasweep each`" in result.err) == (2, True)


def test_words_that_are_files_have_their_whole_path(tmp_path: Path) -> None:
    for name in ("gsm8k", "data.jsonl", "sub/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wrong: list[str] = []
    command = settle(["bash", "./data.jsonl", "gsm8k", "sub/x", "sub/", ".", "no.txt"], tmp_path, wrong)
    here = str(tmp_path)
    assert wrong == []
    assert command.words == ("bash", f"{here}/data.jsonl", "gsm8k", f"{here}/sub/x", "sub/", ".", "no.txt")
    assert list(command.files) == [f"{here}/data.jsonl", f"{here}/sub/x"]


def test_a_proxy_of_the_environment_is_not_asked(tmp_path: Path) -> None:
    told = environment({"NO_PROXY": "corp", "X": "1"}, "http://127.0.0.1:5", "key", "model", "0.5", tmp_path)
    assert told["no_proxy"] == told["NO_PROXY"] == "corp,127.0.0.1"
    assert (told["OPENAI_BASE_URL"], told["X"]) == ("http://127.0.0.1:5/v1", "1")
    assert told["LAMBDASWEEP_MODEL"] == "model"
    assert Path(told["INSPECT_CACHE_DIR"]).is_relative_to(tmp_path)


def test_arguments_of_vllm_become_flags() -> None:
    given = {"max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False, "x": {"a": 1}, "y": "z"}
    assert server_flags(given) == [
        *("--max-num-seqs", "8", "--enforce-eager", "--no-enable-prefix-caching", "--x", '{"a": 1}', "--y", "z")
    ]


@pytest.mark.slow
def test_several_aligned_checkpoints(each: Each, evaluator: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    measures = 'open("metrics.json", "w").write(json.dumps({"quiz": {"length": len(lam)}}))\n'
    named = ("--aligned", f"sft={pair[1]},dpo={pair[0]}")  # the last of equal flags holds
    result = each(*PYTHON, evaluator(measures=measures), lambdas="dpo=0,1,sft=0.5", flags=named)
    assert result.code == 0, result.err
    assert seen(tmp_path) == ["dpo=0,sft=0.5", "dpo=1,sft=0.5"]
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()
    assert [(row["point"], row["lam"]) for row in rows] == [("dpo=0,sft=0.5", None), ("dpo=1,sft=0.5", None)]


class Driver:
    """This runs `lambdasweep each` in a process of its own, which can be killed."""

    def __init__(self, pair: tuple[Path, Path], root: Path, command: Path) -> None:
        flags = ["--base", pair[0], "--aligned", pair[1], "--lambdas", "0,0.5,1", "--out", root / "run"]
        arguments = ["lambdasweep", "each", *map(str, flags), "--", *PYTHON, str(command)]

        def run() -> None:
            os.environ["TMPDIR"], tempfile.tempdir = str(root), None
            sys.argv = arguments
            entry.main()

        self.log = root / "driver.log"
        self.process = fork(run, self.log)

    def wait_for(self, path: Path) -> None:
        def there() -> bool:
            assert self.process.exitcode is None, self.log.read_text()
            return path.exists() and bool(path.read_text())

        until(there, 120)


# At λ = 0.5 it waits for somebody to kill it; told to end, it sees whether the server is still there.
WAITS = """
if lam == "0.5" and not os.path.exists(os.environ["SEEN"] + ".go"):
    import signal, sys, time
    def told_to_end(*_):
        open(os.environ["SEEN"] + ".order", "w").write(ask("/v1/lambda")["lam"])
        sys.exit(1)
    signal.signal(signal.SIGTERM, told_to_end)
    open("half", "w").write("half")
    open(os.environ["SEEN"] + ".waits", "w").write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_driver_that_is_killed_loses_one_lambda_and_leaves_nothing_running(
    each: Each, pair: tuple[Path, Path], evaluator: Any, tmp_path: Path, number: signal.Signals
) -> None:
    command = evaluator(WAITS)
    driver = Driver(pair, tmp_path, command)
    waiting = tmp_path / "seen.waits"
    driver.wait_for(waiting)
    children = [int(waiting.read_text()), int(re.findall(r"process (\d+)", (tmp_path / "server").read_text())[0])]
    assert all(map(lives, children))
    assert driver.process.pid is not None
    os.kill(driver.process.pid, number)
    code = until(lambda: driver.process.exitcode is not None and [driver.process.exitcode], 60)[0]
    until(lambda: not any(map(lives, children)), 30)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert not (tmp_path / "seen.order").exists()
    else:
        assert code == 130
        assert (tmp_path / "seen.order").read_text() == "0.5"  # the command ended first, and the server after it
        assert server_lines(tmp_path)[-1] == "ended"
        assert not list(tmp_path.glob("lambdasweep-server-*.log"))
        assert "stopped; what is measured is kept, and the same command goes on from there" in driver.log.read_text()
    run = RunDir(tmp_path / "run")
    assert list(run.all_measured()) == ["0"]
    (tmp_path / "seen.go").touch()
    assert each(*PYTHON, command).code == 0
    assert seen(tmp_path) == ["0", "0.5", "0.5", "1"]
    assert (tmp_path / "run" / "aside" / "lambda=0.5.1" / "out-1" / "half").read_text() == "half"
    # A run that nobody killed has the same bytes.
    (tmp_path / "run").rename(tmp_path / "killed")
    assert each(*PYTHON, command).code == 0
    for name in (
        "measured/lambda=0.parquet",
        "measured/lambda=0.5.parquet",
        "metrics.parquet",
        "sweep.json",
        "plan.json",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def measured_run(root: Path, lambdas: tuple[str, ...] = ("0", "0.5", "1")) -> RunDir:
    """Return a run whose command measured all but the last λ."""
    run = RunDir(root)
    parent = {"source": "/models/base", "fingerprint": "f"}
    engine = {"served": True, "device": "cpu", "dtype": "float32", "tensor_parallel": 1}
    commit_json(
        run.sweep_json,
        {"pair": {"base": parent, "aligned": parent | {"source": "/models/chat"}}, "engine": engine, "versions": {}},
    )
    each = {"command": ["./judge.sh", "<b>"], "files": {"/x/judge.sh": "abc"}, "lambdas": list(lambdas)}
    commit_json(run.plan_json, {"tasks": {}, "each": each})
    for lam in lambdas[:-1]:
        rows = [
            ("arc", lam, "lm_eval/acc,none", 0.5 + float(lam) / 10, 0.05, 100, "r.json"),
            ("arc", lam, "lm_eval/acc_norm,none", None, None, 100, "r.json"),
            ("guide", lam, "inspect/match/accuracy", 0.25, None, 8, "l.json"),
            ("guide", lam, "command/wins", 3.0, None, 0, "metrics.json"),
        ]
        commit_table(run.measured(lam), schemas.table_of(schemas.MEASURED, rows))
    return run


def test_names_of_several_reducers_can_be_told_apart() -> None:
    names = [f"inspect/match/{reducer}/accuracy" for reducer in ("mean", "mode", "at_least_2")]
    rows = [
        {"metric": name, "value": 0.2, "ci_low": 0.05, "ci_high": 0.35, "n": 10, "lam": Decimal(lam)}
        for name in names
        for lam in ("0", "0.5")
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(outcome_table("guide", rows, {}, "inspect/", intervals=True))
    lines = console.export_text().splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if "─" in line)]
    words = "".join(head).split()
    assert {"mean/", "mode/", "accuracy"} <= set(words)
    assert "…" not in "".join(lines)


def test_tables_and_report_of_what_was_measured(tmp_path: Path) -> None:
    run = measured_run(tmp_path)
    analysis = analyse(run, resamples=20)
    tables = render(analysis.metrics, intervals=True, parents=analysis.parents)
    assert [str(table.title) for table in tables] == ["arc, by lm-eval", "guide, by the command", "guide, by Inspect"]
    headers = [[str(column.header) for column in table.columns] for table in tables]
    assert headers == [
        ["λ", "", "acc", "95 %", "acc_norm", "docs"],
        ["λ", "", "wins", "docs"],
        ["λ", "", "match/accuracy", "docs"],
    ]
    cells = [list(column.cells) for column in tables[0].columns]
    assert cells == [
        ["0", "0.5"],
        ["base", ""],
        ["0.50000", "0.55000"],
        ["0.402 to 0.598", "0.452 to 0.648"],
        ["–", "–"],
        ["100", "100"],
    ]
    assert str(tables[0].caption) == "95 %: ± 1.96 standard errors, by lm-eval"
    assert list(tables[1].columns[-1].cells) == ["–", "–"]  # the command did not say how many documents there were
    with undrawn():
        write_report(run, analysis, figures=True)
    html = run.index_html.read_text(encoding="utf-8")
    assert "A command measured everything here" in html
    assert "λ = 1: nothing is measured there" in html
    assert "./judge.sh &lt;b&gt;" in html
    assert "Quarantine" not in html
    assert "nothing is scored" not in html
    assert "0.55 [0.452, 0.648]" in html
    assert html.count('class="figure" id="outcome-') == 3


def test_what_is_of_sweeps_alone_is_refused(lambdasweep: Callable[..., Result], tmp_path: Path) -> None:
    measured_run(tmp_path / "run")
    result = lambdasweep("status", "--watch", tmp_path / "run")
    assert (result.code, "and --watch shows sweeps: leave it out" in result.err) == (2, True)
    result = lambdasweep("report", tmp_path / "run", "--lm-eval", tmp_path / "files")
    assert (result.code, f"that its command wrote lie in {tmp_path}/run/each" in result.err) == (2, True)
    assert not (tmp_path / "files").exists()
    assert not (tmp_path / "run" / "report").exists()


def test_a_damaged_table_of_what_was_measured_counts_as_absent(tmp_path: Path) -> None:
    run = measured_run(tmp_path)
    path = run.measured("0")
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[:-9])
    assert list(RunDir(tmp_path).all_measured()) == ["0.5"]
    analysis = analyse(RunDir(tmp_path), resamples=20)
    assert {row["point"] for row in analysis.metrics.to_pylist()} == {"0.5"}
    assert analysis.damaged[0].startswith("measured/lambda=0.parquet is cut short")


def test_what_was_measured_at_another_lambda_counts_as_absent(tmp_path: Path) -> None:
    run = measured_run(tmp_path)
    shutil.copy(run.measured("0"), run.measured("0.5"))
    says = "measured/lambda=0.5.parquet is another table, moved or copied there: that of λ = 0"
    analysis = analyse(RunDir(tmp_path), resamples=20)
    assert {row["point"] for row in analysis.metrics.to_pylist()} == {"0"}
    assert analysis.damaged == (says,)
    lines = list(describe(tmp_path))
    assert "1/3 λs measured" in lines
    assert f"  {says}" in lines


@pytest.mark.slow
def test_a_damaged_lambda_is_measured_again(each: Each, evaluator: Any, tmp_path: Path) -> None:
    command = evaluator()
    assert each(*PYTHON, command, lambdas="0,1").code == 0
    path = tmp_path / "run" / "measured" / "lambda=1.parquet"
    whole = path.read_bytes()
    path.write_bytes(b"")
    result = each(*PYTHON, command, lambdas="0,1")
    assert (result.code, seen(tmp_path)) == (0, ["0", "1", "1"])
    assert "measured/lambda=1.parquet is empty" in result.err
    assert path.read_bytes() == whole


def test_two_drivers_do_not_share_a_directory(each: Each, evaluator: Any, tmp_path: Path) -> None:
    assert each(*PYTHON, evaluator(), lambdas="0").code == 0
    with RunDir(tmp_path / "run").lock():
        result = each(*PYTHON, evaluator(), lambdas="0,1")
    assert (result.code, "another lambdasweep process is writing" in result.err) == (2, True)
    assert len(server_lines(tmp_path)) == 2  # no server was started for it


def test_two_drivers_that_start_at_once_do_not_share_a_new_directory(
    each: Each, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver makes the directory while our server starts."""
    root, start = tmp_path / "run", Server.start
    other = ExitStack()

    def slowly(*given: Any) -> Server:
        server = start(*given)
        other.enter_context(RunDir(root).lock())
        return server

    monkeypatch.setattr(Server, "start", slowly)
    with other:
        result = each(*PYTHON, evaluator(), lambdas="0")
    assert (result.code, "another lambdasweep process is writing" in result.err) == (2, True)
    assert seen(tmp_path) == []
    assert [path.name for path in root.iterdir()] == [".lock"]
    assert server_lines(tmp_path)[-1] == "ended"


@pytest.mark.slow
def test_what_another_driver_left_while_the_server_started_is_looked_at_again(
    each: Each, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ready, start = tmp_path / "run", tmp_path / "ready", Server.start
    command = evaluator()
    assert each(*PYTHON, command, lambdas="0").code == 0
    root.rename(ready)

    def slowly(*given: Any) -> Server:
        server = start(*given)
        shutil.copytree(ready, root)
        return server

    monkeypatch.setattr(Server, "start", slowly)
    other = each(*PYTHON, command, "--fast", lambdas="0")
    assert (other.code, "holds something else" in other.err) == (2, True)
    assert contents(root) == contents(ready)
    shutil.rmtree(root)
    assert each(*PYTHON, command, lambdas="0,1").code == 0
    assert seen(tmp_path) == ["0", "1"]


def test_a_new_directory_is_held_until_the_server_has_ended(
    each: Each, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave, held = Children.__exit__, list[bool]()

    def left(self: Children, *error: Any) -> None:
        leave(self, *error)
        try:
            with RunDir(tmp_path / "run").lock():
                held.append(False)
        except RunMismatchError:
            held.append(True)

    monkeypatch.setattr(Children, "__exit__", left)
    assert each(*PYTHON, evaluator(), lambdas="0").code == 0
    assert held == [True]
