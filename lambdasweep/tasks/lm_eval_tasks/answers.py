"""lm-eval's instances of a document are choices of which one is right, or one continuation, or neither.

Our metrics need one right answer among choices, or one continuation. A task that is not clearly of these kinds has lm-eval's
own metrics only, because it is better to give no calibration error than that of another question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lambdasweep.tasks.requests import ScoredAs


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as our metrics see it.

    Attributes:
        scored_as: choices, contexts or continuation.
        sizes: the UTF-8 bytes of the text that each of the first instances scores; the instances after them are the same
            choices without a context.
        gold: the index of the right instance.
    """

    scored_as: ScoredAs
    sizes: tuple[int, ...]
    gold: int


def read(task: Any, doc: Any, instances: Sequence[Any]) -> Reading | str:
    """Return how our metrics see a document of lm-eval, or the reason why they cannot.

    Args:
        task: lm-eval's task object.
        doc: the document.
        instances: all instances of the document, in lm-eval's order.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return "its texts are scored in windows"
    if not hasattr(task, "multiple_input"):
        return "it is a Python class of its own"
    if callable(task.config.process_results):
        return "it computes results in its own way"
    if task.OUTPUT_TYPE == "loglikelihood":
        if len(instances) != 1:
            return f"a document has {len(instances)} continuations"
        return Reading("continuation", (_bytes(instances[0].args[1]),), 0)
    choices = task.doc_to_choice(doc)
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = _place(answer, choices)
    if gold is None:
        return "a document has no right choice, or several"
    if len(choices) < 2:
        return "a document has one choice"
    if len(instances) not in (len(choices), 2 * len(choices)):
        return "a document has more or fewer requests than choices"
    if task.multiple_input:
        sizes = tuple(_bytes(instance.args[1]) for instance in instances[: len(choices)])
        return Reading("contexts", sizes, gold)
    if not all(choices):
        return "a choice is empty"
    return Reading("choices", tuple(len(choice.encode()) for choice in choices), gold)


def _place(answer: Any, choices: Sequence[str]) -> int | None:
    """Return the index of the right choice; lm-eval's tasks tell it by an index, by the text, or by a list of one index."""
    if isinstance(answer, list):
        if len(answer) != 1 or isinstance(answer[0], str):
            return None
        answer = answer[0]
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    return int(answer) if isinstance(answer, int) and 0 <= answer < len(choices) else None


def _bytes(continuation: str) -> int:
    # The space in front does not count, as in task files; a continuation of white space alone has its own length.
    return len((continuation.lstrip() or continuation).encode()) or 1
