"""Flags of vLLM's server are taken or refused."""

import socket
from pathlib import Path

import pytest

from contract.errors import InputError
from merge.line import STRAIGHT
from tests.support.checkpoints import POSITIONS, write_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    base, aligned = write_checkpoint(root / "before", seed=0), write_checkpoint(root / "after", seed=1)
    (aligned / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return base, aligned


@pytest.mark.slow
def test_flags_that_would_break_it_are_refused_at_once(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments

    flags = ("other-model", "--load-format", "dummy", "--enable-lora", "--api-server-count", "2", "--trust-remote-code")
    flags += ("--pipeline-parallel-size", "2", "--hf-overrides", '{"rope_theta": 5}')
    with pytest.raises(InputError) as caught:
        arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", flags))
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "--model-tag", "--load-format", "--hf-overrides", "--trust-remote-code", "--enable-lora", "--api-server-count",
        "--pipeline-parallel-size",
    ]  # fmt: skip


def test_what_vllm_does_not_know_is_refused_in_a_sentence(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments

    with pytest.raises(InputError) as caught:
        arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", ("--foo",)))
    assert caught.value.problems == ("vllm serve says: unrecognized arguments: --foo",)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--max-model-len", "999999"), "User-specified max_model_len (999999) is greater than the derived"),
        (
            ("--tensor-parallel-size", "3"),
            "Total number of attention heads (4) must be divisible by tensor parallel size (3)",
        ),
    ],
)
def test_what_vllm_could_not_start_is_refused_before_anything_is_loaded(
    pair: tuple[Path, Path], flags: tuple[str, ...], says: str
) -> None:
    from serve.http.server import Serving, arguments, check_start

    with pytest.raises(InputError) as caught:
        check_start(arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", (*flags, "--port", "0"))))
    (problem,) = caught.value.problems
    assert problem.startswith(f"vLLM says: {says}")


def test_an_address_that_is_taken_is_refused(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments, check_start

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = "--port", str(port), "--dtype", "float32", "--max-model-len", str(POSITIONS)
        args = arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", flags))
        with pytest.raises(InputError) as caught:
            check_start(args)
    assert caught.value.problems == (
        f"127.0.0.1:{port} cannot be listened on (Address already in use): give another --port, or --host",
    )
    check_start(args)
    args.host = "localhost"  # which is one of IPv4 to vLLM
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError):
        check_start(args)


def test_flags_win_over_defaults(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments

    flags = ("--max-model-len", "99", "--host", "0.0.0.0", "--served-model-name", "mine")
    args = arguments(
        Serving(*pair, STRAIGHT, "0", "auto", "name", flags, {"max_model_len": POSITIONS, "dtype": "float32"})
    )
    assert (args.max_model_len, args.dtype, args.host, args.served_model_name) == (99, "float32", "0.0.0.0", ["mine"])
    args = arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", (), {"max_model_len": POSITIONS}))
    assert (args.max_model_len, args.host, args.served_model_name) == (POSITIONS, "127.0.0.1", ["name"])
