"""Flags of vLLM's server are taken or refused."""

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


def test_flags_that_would_break_it_are_refused_at_once(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments

    flags = ("other-model", "--load-format", "dummy", "--enable-lora", "--api-server-count", "2", "--trust-remote-code")
    flags += ("--pipeline-parallel-size", "2")
    with pytest.raises(InputError) as caught:
        arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", flags))
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "--model-tag", "--load-format", "--trust-remote-code", "--enable-lora", "--api-server-count",
        "--pipeline-parallel-size",
    ]  # fmt: skip


def test_flags_win_over_defaults(pair: tuple[Path, Path]) -> None:
    from serve.http.server import Serving, arguments

    flags = ("--max-model-len", "99", "--host", "0.0.0.0", "--served-model-name", "mine")
    args = arguments(
        Serving(*pair, STRAIGHT, "0", "auto", "name", flags, {"max_model_len": POSITIONS, "dtype": "float32"})
    )
    assert (args.max_model_len, args.dtype, args.host, args.served_model_name) == (99, "float32", "0.0.0.0", ["mine"])
    args = arguments(Serving(*pair, STRAIGHT, "0", "auto", "name", (), {"max_model_len": POSITIONS}))
    assert (args.max_model_len, args.host, args.served_model_name) == (POSITIONS, "127.0.0.1", ["name"])
