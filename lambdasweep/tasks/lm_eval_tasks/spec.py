"""This module holds the lm-eval task that a user asks for, before anything of lm-eval is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contract.errors import TaskError

PREFIX = "lm-eval:"
VERSION = "0.4.13"  # this package was compared with the tokens and the evaluator of this version
SEED = 1234  # lm-eval's own seed for drawing examples

GENERATE_UNTIL, ROLLING = "generate_until", "loglikelihood_rolling"  # two of the kinds of requests that lm-eval has

_FILES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class LmEvalSpec:
    """The lm-eval task that a user asks for; nothing is checked until `load_lm_eval`.

    Args:
        source: the name of a task, group or tag of lm-eval, or the path of a YAML file.
        name: the name that the task has here; None takes lm-eval's name.
        shots: how many solved examples stand in front of every document; None takes as many as the task says.
        limit: how many documents of each task are evaluated, from the first on; None evaluates all of them.
        seed: the seed that the examples are drawn with.
        template: chat puts documents and examples into a user turn of the aligned model's chat template, chat-turns each
            example into two turns of its own.
        system_prompt: lm-eval's `system_instruction`.
        repeats, temperature, max_tokens, until: take the place of what a task says whose answers the model writes; until is
            one text, in which a backslash and an n are a new line.
        normaliser: says which of these answers are the same.
        equivalence: says which of these answers mean the same [equivalence.Equivalence].
        think_end_token: ends the thinking before these answers; an argument of lm-eval's models.
        p_true: asks the model whether such an answer is right.
        verbalised: finds how sure such an answer says it is.
        verbalised_suffix: is refused: prompts are lm-eval's own.
    """

    source: str
    name: str | None = None
    shots: int | None = None
    limit: int | None = None
    seed: int = SEED
    template: str = "none"
    system_prompt: str | None = None
    repeats: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    until: str | None = None
    normaliser: str | None = None
    equivalence: str | None = None
    think_end_token: str | None = None
    p_true: str | None = None
    verbalised: str | None = None
    verbalised_suffix: str | None = None

    @property
    def chat(self) -> bool:
        return self.template != "none"

    @property
    def is_file(self) -> bool:
        """Tell whether `source` is the path of a YAML file."""
        return self.source.endswith(_FILES)


def resolved(spec: LmEvalSpec, folder: Path) -> LmEvalSpec:
    """Return the spec with a relative path of a YAML file taken as relative to `folder`."""
    return replace(spec, source=str(folder / spec.source)) if spec.is_file else spec


def task_error(spec: LmEvalSpec, problems: Sequence[str]) -> TaskError:
    """Return the error of a task that cannot be built."""
    return TaskError(f"task {PREFIX}{spec.source} cannot be built", list(problems))


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or ["no message"])[0]
