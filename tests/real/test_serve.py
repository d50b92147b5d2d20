"""vLLM's server with θ(λ) live answers the openai client as transformers does on the exported θ(λ).

Most tests of this file use one server, and one server is broken on purpose.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch

from contract.location import read_table
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from lambdasweep.takehome.serve import name_at
from tests.support.checkpoints import VOCAB, write_checkpoint
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.waiting import until
from tests.support.warm_python import descendants, warm_python

KEY = "sesame"
LAMBDAS = ("0", "0.35", "1")  # the λs at which a command asks
MODELS = ("after-lambda", *(name_at("after-lambda", lam) for lam in LAMBDAS))
HEADER = "X-Lambdasweep-Lambda"
LENGTH = 300  # the tokens of a long answer


@dataclass(frozen=True)
class Server:
    url: str
    base: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=1500)

    def ask(
        self, path: str, body: bytes | None = None, key: str | None = KEY, method: str | None = None
    ) -> tuple[int, Any]:
        """Send a request by hand; return its status and its JSON."""
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("Content-Type", "application/json")
        if key is not None:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=1500) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def move(self, lam: str) -> None:
        status, answer = self.ask("/v1/lambda", json.dumps({"lam": lam}).encode())
        assert status == 200, answer
        assert answer["lam"] == lam

    @property
    def lam(self) -> str:
        status, answer = self.ask("/v1/lambda")
        assert status == 200, answer
        return str(answer["lam"])


@contextlib.contextmanager
def serving(
    base: Path,
    aligned: Path | str,
    log: Path,
    *options: str,
    lam: str = "0.0",
    tensor_parallel: int = 1,
    models: Sequence[str] = (),
) -> Iterator[Server]:
    (port,) = free_ports(1)
    flags = ["--port", str(port), "--api-key", KEY, "--max-num-seqs", "8"]
    flags += ["--tensor-parallel-size", str(tensor_parallel)]
    flags += ["--served-model-name", *models] if models else []
    command = [
        warm_python(),
        "-m",
        "lambdasweep",
        "serve",
        "--base",
        str(base),
        "--aligned",
        str(aligned),
        "--lam",
        lam,
    ]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*command, *options, "--", *flags], cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", base)
    try:

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()[-6000:]
            with contextlib.suppress(OSError):
                return server.ask("/health")[0] == 200
            time.sleep(0.5)
            return False

        until(healthy, shows=lambda: log.stat().st_size)
        yield server
    finally:
        left = descendants(process.pid)
        process.terminate()
        try:
            until(lambda: process.poll() is not None, 60)
        finally:
            process.kill()
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    base, aligned = write_checkpoint(root / "before", seed=0), write_checkpoint(root / "after", seed=1)
    (aligned / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return base, aligned


@pytest.fixture(scope="module")
def server(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(*pair, tmp_path_factory.mktemp("server") / "log", models=MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def greedy(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the tokens that transformers continues a prompt with, at a λ."""
    return continuations(pair[0], str(pair[1]), tmp_path_factory.mktemp("exported"))


def continuations(base: Path, aligned: str, root: Path) -> Any:
    from transformers import AutoModelForCausalLM

    models: dict[str, Any] = {}

    def answers(lam: str, prompts: list[list[int]], length: int = LENGTH) -> list[list[int]]:
        """Return the continuations of prompts of one length."""
        if lam not in models:
            export_point(from_flags(None, str(base), aligned, None, None, lam), root / lam, "aligned", "5GB", print)
            models[lam] = AutoModelForCausalLM.from_pretrained(root / lam, dtype=torch.float32).eval()
        with torch.no_grad():
            ids, cache, found = torch.tensor(prompts), None, []
            for _ in range(length):
                step = models[lam](ids, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                ids = step.logits[:, -1].argmax(-1, keepdim=True)
                found.append(ids)
        return torch.cat(found, 1).tolist()

    return answers


def prompt(seed: int, length: int = 70) -> list[int]:
    """Return a prompt that is longer than two blocks of the prefix cache."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


OPTIONS: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}


def complete(server: Server, ids: list[int], length: int = 40, model: str = "after-lambda") -> tuple[str, list[int]]:
    """Return the λ that an answer names, and its tokens."""
    raw = server.client.completions.with_raw_response.create(model=model, prompt=ids, max_tokens=length, **OPTIONS)
    return raw.headers[HEADER], raw.parse().choices[0].token_ids  # type: ignore[attr-defined]


def test_answers_before_and_after_a_move_are_those_of_each_point(server: Server, greedy: Any) -> None:
    ids = prompt(1)
    seen = []
    # It is the same prompt, and nothing of it may be left in the prefix cache.
    for lam in ("0", "0.35", "1.3", "1", "0.35"):
        server.move(lam)
        assert server.lam == lam
        named, found = complete(server, ids)
        assert named == lam
        assert [found] == greedy(lam, [ids], 40)
        seen.append(found)
    assert seen[1] == seen[4]
    assert len({tuple(found) for found in seen}) == 4


def test_the_fast_route_passed_its_check(server: Server) -> None:
    status, answer = server.ask("/v1/lambda")
    assert (status, answer["route"], answer["fallback"]) == (200, "resident mmap", "")


def test_chat_and_models(server: Server) -> None:
    server.move("0.5")
    client = server.client
    assert [model.id for model in client.models.list()] == list(MODELS)
    raw = client.chat.completions.with_raw_response.create(
        model="after-lambda", messages=[{"role": "user", "content": "the other"}], max_tokens=3, temperature=0
    )
    assert raw.headers[HEADER] == "0.5"
    assert raw.parse().usage.completion_tokens > 0  # type: ignore[union-attr]


def test_streams_finish_on_the_lambda_that_they_name(server: Server, greedy: Any) -> None:
    prompts = [prompt(seed) for seed in range(10, 14)]
    before, after = greedy("0.35", prompts), greedy("1.3", prompts, 40)

    def stream(ids: list[int], started: threading.Barrier, ended: list[float]) -> tuple[str, list[int]]:
        with server.client.completions.with_streaming_response.create(
            model="after-lambda", prompt=ids, max_tokens=LENGTH, stream=True, **OPTIONS
        ) as raw:
            named, found = raw.headers[HEADER], []
            for chunk in raw.parse():
                if not found:
                    started.wait(1500)
                found += chunk.choices[0].token_ids or [] if chunk.choices else []  # type: ignore[attr-defined]
        ended.append(time.monotonic())
        return named, found

    def waited() -> bool:
        """Move while streams are under way; tell whether they were when the move was asked for."""
        server.move("0.35")
        started, ended = threading.Barrier(len(prompts) + 1), list[float]()
        with ThreadPoolExecutor(12) as pool:
            old = [pool.submit(stream, ids, started, ended) for ids in prompts]
            started.wait(1500)
            asked = time.monotonic()
            move = pool.submit(server.move, "1.3")
            time.sleep(0.1)
            new = [pool.submit(complete, server, ids) for ids in prompts]
            move.result()
            assert [one.result() for one in old] == [("0.35", ids) for ids in before]
            found = [one.result() for one in new]
            if any(lam == "0.35" for lam, _ in found):  # on a busy machine one may come before the move
                return False
            assert found == [("1.3", ids) for ids in after]
        return asked < min(ended)

    # On a busy machine the streams may be over before this thread has its turn. Then the move had nothing to wait for.
    assert any(waited() for _ in range(10))


def test_concurrent_moves_take_turns(server: Server, greedy: Any) -> None:
    ids = prompt(2)
    with ThreadPoolExecutor(12) as pool:
        moves = [pool.submit(server.move, lam) for lam in ("0", "1", "0.35", "1.3", "0", "1")]
        answers = [pool.submit(complete, server, ids) for _ in range(6)]
        for one in moves:
            one.result()
        for answer in answers:
            lam, found = answer.result()
            assert [found] == greedy(lam, [ids], 40)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"lam": "a lot"}', "λ 'a lot' is not a decimal number"),
        ('{"lam": "0.1234567"}', "more than 6 decimals"),
        ('{"lam": 1e-1}', "λ '1e-1' is not a decimal number"),
        ('{"lam": true}', 'send {"lam": "0.7"} and nothing else'),
        ('{"lam": "0.5", "force": "1"}', 'send {"lam": "0.7"} and nothing else'),
        ("[]", 'send {"lam": "0.7"} and nothing else'),
        ("0.5 0.6", "the body is not JSON"),
        ("", "the body is not JSON"),
    ],
)
def test_a_bad_lambda_says_what_is_wrong_and_moves_nothing(server: Server, body: str, says: str) -> None:
    before = server.lam
    status, answer = server.ask("/v1/lambda", body.encode(), method="POST")
    assert status == 400
    assert says in answer["error"]["message"]
    assert server.lam == before


def test_numbers_are_taken_as_they_are_written(server: Server) -> None:
    status, answer = server.ask("/v1/lambda", b'{"lam": 0.350}')
    assert (status, answer["lam"], server.lam) == (200, "0.35", "0.35")


def test_several_aligned_checkpoints_are_moved_between_on_two_ranks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=2)
    aligned = f"sft={other},dpo={pair[1]}"
    greedy = continuations(pair[0], aligned, tmp_path)
    inner, axis = "dpo=0.5,sft=0.25", "dpo=0,sft=0.7"
    with serving(pair[0], aligned, tmp_path / "log", lam="sft=0.25,dpo=0.50", tensor_parallel=2) as server:
        status, answer = server.ask("/v1/lambda")
        assert (status, answer["lam"], answer["fallback"]) == (200, inner, "")
        for lam in (inner, axis):
            server.move(lam)
            assert complete(server, prompt(4), model="after-other-lambda") == (lam, *greedy(lam, [prompt(4)], 40))
        for body, says in (
            ('{"lam": "0.5"}', "there are dpo, sft"),
            ('{"lam": "dpo=1,rl=0"}', "'sft' is missing"),
            ('{"lam": "dpo=0:1:1,sft=0"}', "dpo: λ '0:1:1' is not a decimal number"),
            ("{}", 'send {"lam": "dpo=0.7,sft=0.7"} and nothing else'),
        ):
            status, answer = server.ask("/v1/lambda", body.encode(), method="POST")
            assert status == 400
            assert says in answer["error"]["message"]
        assert server.lam == axis


# This is a user's evaluator, which asks for the tokens and the log-probabilities of a greedy answer.
EVALUATOR = """
import json, os, sys, urllib.request
body = {"model": os.environ["LAMBDASWEEP_MODEL"], "prompt": json.loads(sys.argv[1]), "max_tokens": 4, "temperature": 0,
        "logprobs": 0, "ignore_eos": True, "return_token_ids": True}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/completions", data=json.dumps(body).encode())
request.add_header("Content-Type", "application/json")
request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
answer = urllib.request.urlopen(request)
assert answer.headers["X-Lambdasweep-Lambda"] == os.environ["LAMBDASWEEP_LAM"]
choice = json.loads(answer.read())["choices"][0]
found = {f"token_{i}": token for i, token in enumerate(choice["token_ids"])}
found["logprob"] = sum(choice["logprobs"]["token_logprobs"])
open("metrics.json", "w").write(json.dumps({"greedy": found}))
"""


def test_a_command_asks_the_server_at_every_lambda(
    server: Server, pair: tuple[Path, Path], greedy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let `lambdasweep each` use the server of this file in the place of one of its own."""
    from lambdasweep.each.config import load_each_config
    from lambdasweep.each.run import run_each
    from lambdasweep.each.server import Server as Served

    def start(children: Any, *_: object) -> Served:
        log = tmp_path / "log"
        with open(log, "wb") as stream:
            process = children.start(["sleep", "3600"], os.environ, stream)
        return Served(children, process, log, int(server.url.rpartition(":")[2]), KEY)

    monkeypatch.setattr(Served, "start", start)
    (tmp_path / "evaluate.py").write_text(EVALUATOR)
    flags = {"base": str(pair[0]), "aligned": str(pair[1]), "lambdas": ",".join(LAMBDAS), "out": str(tmp_path / "run")}
    words = [sys.executable, "evaluate.py", json.dumps(prompt(5))]
    said: list[str] = []
    result = run_each(load_each_config(flags, [], words, tmp_path), os.environ, said.append)
    assert (result.failed, result.done) == ((), 3), said
    for lam in LAMBDAS:
        rows = read_table(result.run.measured(lam)).to_pylist()
        found = {row["metric"].removeprefix("command/"): row["value"] for row in rows}
        assert [found[f"token_{i}"] for i in range(4)] == greedy(lam, [prompt(5)], 4)[0]
        assert -40 < found["logprob"] < 0


@pytest.mark.parametrize("key", [None, "wrong"])
def test_nothing_that_does_something_is_done_without_the_key(server: Server, key: str | None) -> None:
    before = server.lam
    assert server.ask("/v1/lambda", key=key)[0] == 401
    assert server.ask("/v1/lambda", b'{"lam": "0.9"}', key=key)[0] == 401
    _, schema = server.ask("/openapi.json")
    routes = [
        (path, method.upper()) for path, methods in schema["paths"].items() for method in methods if method != "get"
    ]
    assert ("/v1/lambda", "POST") in routes
    assert ("/invocations", "POST") in routes
    for path, method in routes:
        body = b'{"lam": "0.9", "model": "after-lambda", "prompt": "a"}'
        assert server.ask(path, body, key=key, method=method)[0] == 401, path
    assert server.lam == before


def test_there_is_no_other_way_to_change_the_weights(server: Server) -> None:
    before = server.lam
    for path in (
        "/pause", "/resume", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights",
        "/finish_weight_update", "/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up", "/v1/load_lora_adapter",
    ):  # fmt: skip
        assert server.ask(path, b'{"update_info": {"lam": "0.9"}}')[0] == 404, path
    assert server.lam == before


def test_it_listens_on_this_machine_only(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    listening = {
        line.split()[1].partition(":")[0]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    assert listening == {"0100007F"}


def test_a_parent_that_is_written_to_fails_the_next_move(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The parents are read where they lie, so that θ(λ) would be of another model, and no number would look wrong."""
    aligned, other = (write_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    with serving(pair[0], aligned, tmp_path / "log") as server:
        assert server.ask("/v1/lambda")[1]["route"] == "resident mmap"
        assert server.ask("/v1/lambda", b'{"lam": "0.5"}')[0] == 200
        with open(aligned / "model.safetensors", "r+b") as file:
            file.write((other / "model.safetensors").read_bytes())
        status, answer = server.ask("/v1/lambda", b'{"lam": "0.75"}')
        assert status == 503
        assert "a parent has changed while it was in use" in answer["error"]["message"]
        assert server.ask("/v1/lambda")[0] == 503


def test_after_a_failed_move_the_reason_is_all_there_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Where no parent is in memory, a file that is gone fails a move half-way."""
    base = write_checkpoint(tmp_path / "before", seed=0)
    with serving(base, pair[1], tmp_path / "log", "--parents", "reload") as server:
        assert server.ask("/v1/lambda")[1]["route"] == "reload"
        (base / "model.safetensors").unlink()
        status, answer = server.ask("/v1/lambda", b'{"lam": "0.5"}')
        assert status == 503
        assert "the move from λ = 0 to 0.5 failed, restart the server" in answer["error"]["message"]
        with pytest.raises(openai.InternalServerError, match=r"the move from λ = 0 to 0\.5 failed") as caught:
            complete(server, prompt(1))
        assert caught.value.status_code == 503
        assert server.ask("/v1/lambda")[0] == server.ask("/health")[0] == 503
        assert server.ask("/v1/lambda", b'{"lam": "0"}')[0] == 503
