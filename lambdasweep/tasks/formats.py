"""A format renders a document as the text that is conditioned on and the texts that are scored. It knows no tokens.

The space between context and continuation belongs to the continuation, as in lm-evaluation-harness, so that a tokenizer
sees " Paris" as the one token that it is in running text.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import Document, Kind

SHOT_SEPARATOR = "\n\n"

# These are recorded with the results. The number of a template grows when it renders the same document as another text.
TEMPLATES = {
    ("choices", "cloze"): r"cloze 1: '{query}\nAnswer:' + ' {choice}'",
    ("choices", "letters"): r"letters 1: '{query}\n{A.} {choice}…\nAnswer:' + ' {A}'",
    ("continuation", "cloze"): r"continuation 1: '{context}' + ' {continuation}'",
    ("answers", "generate"): r"generate 1: '{prompt}'; examples: '{prompt}' + ' {answers[0]}'",
}


@dataclass(frozen=True, slots=True)
class RenderedDocument:
    """The texts of one document.

    `answers` and `sizes` are parallel, and indexed by `Document.gold`; `delimiter` stands between context and answer. A size
    is the number of UTF-8 bytes of the answer (the choice's text, the letter, the continuation) without the space in front
    of it: lm-evaluation-harness divides by the same number for its `acc_bytes`.
    """

    context: str
    answers: tuple[str, ...]
    sizes: tuple[int, ...]
    delimiter: str = " "

    @property
    def continuations(self) -> tuple[str, ...]:
        """Return the texts that are scored after the context."""
        return tuple(self.delimiter + answer for answer in self.answers)


def render(document: Document, kind: Kind, format: str) -> RenderedDocument:
    """Render one document without its shots; `format` is `cloze`, `letters` or `generate`."""
    if kind == "answers":
        joined = not document.query or document.query[-1].isspace()
        sizes = tuple(len(answer.encode()) for answer in document.choices)
        return RenderedDocument(document.query, document.choices, sizes, "" if joined else " ")
    if kind == "continuation":
        (continuation,) = document.choices
        joined = not document.query or document.query[-1].isspace() or continuation[0].isspace()
        size = len(continuation.lstrip().encode())
        return RenderedDocument(document.query, (continuation,), (size,), "" if joined else " ")
    context = document.query.rstrip()
    answers: Sequence[str] = document.choices
    if format == "letters":
        answers = string.ascii_uppercase[: len(document.choices)]
        context += "".join(f"\n{letter}. {choice}" for letter, choice in zip(answers, document.choices, strict=True))
    context += "\nAnswer:"
    return RenderedDocument(context, tuple(answers), tuple(len(answer.encode()) for answer in answers))


def in_chat(prompt: RenderedDocument, chat: ChatTemplate) -> RenderedDocument:
    """Return the prompt with its context as the only user turn, and its answers at the beginning of the assistant's turn.

    Only the template's own text stands between the two turns: as in lm-evaluation-harness, the delimiter is dropped.
    """
    return replace(prompt, context=chat([{"role": "user", "content": prompt.context}]), delimiter="")


def draw_shots(
    documents: Sequence[Document], shots: int, limit: int | None, seed: int
) -> tuple[list[Document], list[Document]]:
    """Return the shots, in the order in which they are shown, and the documents to evaluate, in file order."""
    drawn = random.Random(seed).sample(range(len(documents)), shots)
    left_out = set(drawn)
    rest = [document for index, document in enumerate(documents) if index not in left_out]
    return [documents[index] for index in drawn], rest[:limit]


def shots_text(shots: Sequence[Document], kind: Kind, format: str) -> str:
    """Render the solved examples that stand in front of every document; without examples this is ""."""
    text = ""
    for document in shots:
        prompt = render(document, kind, format)
        text += prompt.context + prompt.continuations[document.gold] + SHOT_SEPARATOR
    return text
