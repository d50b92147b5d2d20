"""This module holds every error that lambdasweep raises on purpose.

    LambdasweepError          exit status 1
    ├── InputError            exit status 2: something the user gave is wrong
    │   ├── GridError         the λ grid
    │   ├── PairError         one of the two checkpoints, or how they fit together
    │   ├── TaskError         a task file or its format
    │   └── RunMismatchError  RUN holds another sweep than the one asked for
    ├── EngineError           vLLM failed; the engine's state can no longer be trusted
    │   └── WrongWeightsError vLLM does not come to have the weights of θ(λ), on any replica
    └── SweepError            the sweep cannot go on (replicas do not start, the disk is full)

Every message says what is wrong, where, and what to change. An `InputError` holds all problems of an input, so that the
user mends them in one go.
"""

from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_QUARANTINE = 3
EXIT_INTERRUPTED = 130


class LambdasweepError(Exception):
    """The root of the exception tree; `exit_code` is the status that the command line ends with."""

    exit_code = EXIT_FAILED


class InputError(LambdasweepError):
    """One or more things are wrong with what the user gave.

    `problems` holds one line for each; `str()` joins them under `title`.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, title: str, problems: Sequence[str] = ()) -> None:
        self.title = title
        self.problems = tuple(problems)
        super().__init__(title, self.problems)

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  - {problem}" for problem in self.problems)])


class GridError(InputError):
    """The λ grid is empty, malformed, or names a point twice."""


class PairError(InputError):
    """A checkpoint cannot be used, or the two do not fit together."""


class TaskError(InputError):
    """A task file is missing, malformed, or does not fit its format."""


class RunMismatchError(InputError):
    """The run directory holds another sweep; the message says what differs."""


class EngineError(LambdasweepError):
    """The vLLM engine failed. Its weights may be half-written: the process that holds it must end."""


class WrongWeightsError(EngineError):
    """No way of switching λ makes the weights that vLLM itself loads, and another replica would find the same."""


class SweepError(LambdasweepError):
    """The sweep cannot go on: its replicas do not start, say, or the disk is full."""


def join(failures: list[InputError], title: str = "the sweep cannot be set up") -> InputError:
    """Make one error of several, so that the user sees all of them."""
    if len(failures) == 1:
        return failures[0]
    lines: list[str] = []
    for failure in failures:
        lines += [f"{failure.title}: {problem}" for problem in failure.problems] or [failure.title]
    return InputError(title, lines)
