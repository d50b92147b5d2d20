"""The command line says what it does, and takes what its help shows."""

import shlex
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import typer

from lambdasweep import cli
from lambdasweep.help import EXAMPLES
from lambdasweep.settings import PairSettings, SamplingSettings, TaskSettings, settings
from tests.support.command_line import Result

TOP: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
# These words call every command.
COMMANDS: dict[tuple[str, ...], Any] = {(name,): one for name, one in TOP.items() if not hasattr(one, "commands")}
COMMANDS |= {(top, name): one for top, group in TOP.items() for name, one in getattr(group, "commands", {}).items()}


@pytest.fixture
def said(lambdasweep: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the help of a command on a wide terminal, with single spaces."""
    monkeypatch.setenv("COLUMNS", "240")

    def text(*arguments: str) -> str:
        result = lambdasweep(*arguments)
        assert (result.code, result.err) == (0, "")
        return " ".join(result.out.split())

    return text


def test_flags_are_in_groups(said: Callable[..., str]) -> None:
    text = said("run", "--help")
    panels = ["Pair", "Grid", "Tasks", "Sampling", "Run", "Line between the two", "Engine", "Cluster"]
    places = [text.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    between = dict(zip(panels, [text[a:b] for a, b in zip(places, [*places[1:], None], strict=True)], strict=True))
    for panel, flag in (("Pair", "--aligned"), ("Grid", "--lambdas"), ("Tasks", "--shots"), ("Engine", "--tp")):
        assert f"│ {flag} " in between[panel]
    assert "│ --address " in between["Cluster"]


def test_help_says_what_is_needed_what_holds_otherwise_and_what_may_be_given(said: Callable[..., str]) -> None:
    text = said("run", "-h")
    assert text.count("[required]") == 4  # --base, --aligned, --lambdas and --out
    for line in (
        "--format [cloze|letters|generate] What of a choice is scored: its text (cloze), or A, B, C… (letters); generate:",
        "--repeats N Answers that the model writes to each document. [default: what the task says, else 1]",
        "--temperature <float> What logits are divided by; 0 is greedy. [default: 1; of a task what it says, else 0]",
        "--tokenizer [base|aligned] Whose",
        "--vocab [strict|shared] Where",
        "Samples of each prompt. [default: 16]",
        "vLLM engines at the same time. [default: as many as there is room for]",
    ):
        assert line in text


@pytest.mark.parametrize("group", [TaskSettings, SamplingSettings, PairSettings])
def test_every_setting_with_a_flag_says_its_default(group: type, said: Callable[..., str]) -> None:
    """A flag whose help is silent about what holds without it makes its reader guess."""
    shown = said("plan", "--help").split("│")
    for name, _, setting in settings(group):
        (line,) = [one for one in shown if one.startswith(f" --{name.replace('_', '-')} ")] or [""]
        assert bool(line) is setting.flag, name
        assert ("[default: " in line) is setting.flag, name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_it_takes(words: tuple[str, ...], said: Callable[..., str]) -> None:
    text, example = said(*words, "--help"), EXAMPLES[words[-1]]
    given = shlex.split(example.replace("\\\n", " "))
    assert given[: len(words) + 1] == ["lambdasweep", *words]
    assert " ".join(example.replace("\\\n", "\\ ").split()) in text
    # Parsing raises where a flag is unknown or a value has another type.
    COMMANDS[words].make_context(words[-1], given[len(words) + 1 :])
    assert all(len(line) < 79 for line in example.splitlines())  # a terminal would break a longer line


def test_the_version(lambdasweep: Callable[..., Result]) -> None:
    result = lambdasweep("--version")
    assert (result.code, result.out) == (0, f"lambdasweep {version('lambdasweep')}\n")


def test_flags_of_vllm_in_the_wrong_place(lambdasweep: Callable[..., Result]) -> None:
    result = lambdasweep("serve", "runs/mine", "--port", "8123")
    assert result.code == 2
    assert (
        "No such option: --port. Flags of `vllm serve` follow after --, as in: serve RUN -- --port 8123" in result.err
    )
    assert "vllm" not in lambdasweep("export", "runs/mine", "--port", "8123").err


def test_errors_are_plain_after_a_help(lambdasweep: Callable[..., Result]) -> None:
    """The help of all commands has panels, and in a test its object is the next command's, too."""
    assert lambdasweep("--help").code == 0
    assert "\nError: No such command 'sweep'." in lambdasweep("sweep").err
