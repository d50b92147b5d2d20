"""`plan` and `run` refuse with one message what cannot run, before anything is written or started."""

import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from contract.errors import InputError
from contract.grid import stops_short
from ray_jobs.reach import check_address
from serve.refusals import refuse_prompt
from tests.support.command_line import IRON, WATER, Result, write_task


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"max_model_len": 3},
            "task metals: 5 of 5 requests cannot be scored: 5 longer than 3 tokens (up to ",
        ),
        (
            {"tp": 3, "replicas": 1},
            "--tp 3: the model's 4 attention heads, 2 of keys and values, cannot be dealt to so many ranks",
        ),
        (
            {"max_model_len": 5, "pmi": True},
            "task metals: 5 of 5 requests cannot be scored: 5 longer than 5 tokens (up to ",
        ),
        ({"replicas": 5000}, "--replicas 5000 take about "),
        (
            {"accelerator_type": "H100"},
            "--accelerator-type H100: vLLM for the CPU is installed, and uses no GPU: leave it out",
        ),
        (
            {"address": "127.0.0.1:1"},
            "no Ray cluster answers at 127.0.0.1:1 (of --address): Connection refused; check it",
        ),
        ({"refine": 3, "lambdas": "0.5"}, "--refine adds λs between others: give --lambdas two or more"),
        ({"samples": 3}, "--samples is about samples: give a --generate, or leave it out"),
        ({"temperature": 0}, "--temperature: no task has answers that the model writes: leave it out, or give"),
        ({"max_tokens": 3}, "--max-tokens: no task has answers that the model writes: leave it out, or give"),
    ],
)
def test_what_cannot_run(refused: Callable[..., Result], changes: dict[str, object], says: str) -> None:
    (problem,) = refused(**changes).problems
    assert says in problem


def test_too_few_cores(refused: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.settings.available_cores", lambda: [0, 1, 2])
    (problem,) = refused(tp=4).problems
    assert problem == (
        "a replica takes 4 cores (4 ranks of 1 thread), and this machine has 3: give fewer ranks, or --replicas 1, whose "
        "ranks then share the cores"
    )


def test_more_gpus_than_there_are(
    refused: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(2):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
    monkeypatch.setattr("serve.settings.installed_device", lambda: "cuda")
    monkeypatch.setattr("serve.machine._GPUS", tmp_path / "gpus")
    (problem,) = refused(tp=4).problems
    assert problem == "a replica takes 4 GPUs, and this machine has 2: give fewer ranks, or a cluster"


def test_shots_that_fill_the_window(refused: Callable[..., Result], tmp_path: Path) -> None:
    task = write_task(tmp_path / "many.jsonl", *[IRON, WATER] * 60)
    (problem,) = refused(task=f"many={task}", shots=100).problems
    assert re.match(
        r"task many: (\d+) of \1 requests cannot be scored: \1 longer than 512 tokens \(up to \d+\): ", problem
    )
    assert problem.endswith("): give fewer --shots or shorter texts")


def test_everything_that_cannot_run_is_named_at_once(refused: Callable[..., Result]) -> None:
    asked = {"max_model_len": 3, "tp": 3, "replicas": 1, "accelerator_type": "H100", "address": "127.0.0.1:1"}
    assert len(refused(**asked).problems) == 4


@pytest.mark.parametrize("question", [None, "kadavath"])
def test_what_is_said_of_a_long_prompt_has_one_set_of_numbers(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path, question: str | None
) -> None:
    rows = [{"prompt": text, "answers": ["4"]} for text in ("two and two is " * 60, "two and two is ")]
    task = f"sums={write_task(tmp_path / 'sums.jsonl', *rows)}:generate"
    told = lambdasweep("plan", *flags(task=task, max_tokens=7, p_true=question)).out
    of_longest = re.search(r"\(the longest has (\d+)\)", told)
    found = re.search(r"1 longer than 512 tokens \(up to (\d+): (\d+) and (\d+) to be sampled\)", told)
    assert of_longest is not None
    assert found is not None, told
    longest, prompt, sampled = map(int, found.groups())
    assert longest == prompt + sampled == int(of_longest[1])
    assert (sampled > 7) == (question is not None)  # a question stands behind the answer
    reason = refuse_prompt([1] * prompt, sampled, 512, 600)
    assert reason == f"{prompt} tokens and {sampled} to be sampled are more than the 512 the engine takes"


def test_a_plan_counts_what_will_be_quarantined(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    task = write_task(tmp_path / "long.jsonl", IRON, IRON | {"query": "Which is a metal? " * 60}, WATER)
    plan = lambdasweep("plan", *flags(task=f"long={task}"))
    assert plan.code == 0
    (line,) = [line for line in plan.out.splitlines() if "cannot be scored" in line]
    assert line.startswith("warning: task long: 2 of 7 requests cannot be scored: 2 longer than 512 tokens (up to ")
    assert line.endswith("); they will be quarantined")
    assert f"{line}\n" in lambdasweep("run", *flags(task=f"long={task}")).err


def test_what_is_taken_and_probably_means_something_else(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], pair: tuple[Path, Path]
) -> None:
    plan = lambdasweep("plan", *flags(lambdas="0:1:0.3,2", aligned=pair[0]))
    assert plan.code == 0
    assert "lambdas   0, 0.3, 0.6, 0.9, 2\n" in plan.out
    assert "warning: --lambdas 0:1:0.3 stops at 0.9: no step lands on its end\n" in plan.out
    assert f"warning: base and aligned are the same checkpoint ({pair[0]}): every λ is the same model\n" in plan.out
    plan = lambdasweep("plan", *flags(replicas=2, lambdas="0"))
    assert "warning: --replicas 2, and 1 unit is left: no more than 1 replica at a time\n" in plan.out
    assert "warning" not in lambdasweep("plan", *flags()).out


@pytest.mark.parametrize(
    ("part", "last"),
    [("0:1:0.3", "0.9"), ("0:1:0.25", None), ("-1:0.5:0.4", "0.2"), ("0:0.5:1", "0"), ("0.7", None), ("0:0:0.1", None)],
)
def test_a_range_that_stops_short(part: str, last: str | None) -> None:
    assert stops_short(part) == last


def test_a_size_without_a_unit(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    given = [
        "--base",
        pair[0],
        "--aligned",
        pair[1],
        "--lam",
        "0.5",
        "--out",
        tmp_path / "out",
        "--max-shard-size",
        "5",
    ]
    result = lambdasweep("export", *given)
    assert result.code == 2
    assert result.err == "lambdasweep: --max-shard-size 5 is 5 bytes: write the unit, as in 5GB\n"


def test_an_export_below_a_file(lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    result = lambdasweep("export", "--base", pair[0], "--aligned", pair[1], "--lam", "0.5", "--out", out)
    assert result.code == 2
    assert result.err == f"lambdasweep: {out} cannot be made: {tmp_path / 'file'} is a file; give another --out\n"


# Addresses of Ray


def test_an_address_that_answers(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # Ray's head speaks gRPC
    where = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        check_address(where)
        check_address(f"ray://{where}")
        (tmp_path / "note").write_text(f"{where}\n")
        check_address("auto", noted=tmp_path / "note")
    finally:
        server.stop(None)


def test_an_address_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        where = f"127.0.0.1:{server.server_address[1]}"
        try:
            with pytest.raises(
                InputError, match=rf"what answers at {where} \(of --address\) is no Ray cluster.* 8265 is"
            ):
                check_address(where)
            monkeypatch.setenv("RAY_USE_TLS", "1")
            check_address(where)  # Ray says what is wrong with it
        finally:
            server.shutdown()


def test_an_address_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            InputError, match=rf"no Ray cluster answers at {where} \(of --address\): timed out; check it"
        ):
            check_address(where, seconds=0.2)


def test_a_cluster_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    note = tmp_path / "note"
    note.write_text("127.0.0.1:1")
    with pytest.raises(InputError) as refused:
        check_address("auto", noted=note)
    assert refused.value.title == (
        f"no Ray cluster answers at 127.0.0.1:1 (of {note}): Connection refused; that cluster has ended, and `ray stop` "
        "removes the note; start one, or leave --address out"
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(InputError, match=r"at 127\.0\.0\.1:2 \(of RAY_ADDRESS\)"):
        check_address("auto", noted=note)
    with pytest.raises(InputError, match=r"'nowhere' \(of --address\) is no address of a Ray cluster"):
        check_address("nowhere")


def test_no_cluster_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray_jobs.reach._runs_here", lambda: False)
    with pytest.raises(InputError, match="--address auto: no Ray cluster runs on this machine"):
        check_address("auto", noted=tmp_path / "none")
    monkeypatch.setattr("ray_jobs.reach._runs_here", lambda: True)
    check_address("auto", noted=tmp_path / "none")  # Ray finds this cluster by its process
