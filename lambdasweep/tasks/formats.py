"""A format renders a document as the text that is conditioned on and the texts that are scored. It knows no tokens.

The space between context and continuation belongs to the continuation, as in lm-evaluation-harness, so that a tokenizer
sees " Paris" as the one token that it is in running text.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract.errors import TaskError
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import Document, Kind, TaskSpec

SHOT_SEPARATOR = "\n\n"
AS_TURNS = "; examples as turns"  # stands behind a recorded template
# What stands in front of a choice without its document: what the template puts behind the query. It stands there, too.
ALONE = "Answer:"
WITHOUT_DOCUMENT = f"; without the document: '{ALONE}'"

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
    context += f"\n{ALONE}"
    return RenderedDocument(context, tuple(answers), tuple(len(answer.encode()) for answer in answers))


def in_chat(
    prompts: Sequence[RenderedDocument],
    shots: Sequence[Document],
    kind: Kind,
    spec: TaskSpec,
    chat: ChatTemplate | None,
) -> list[RenderedDocument]:
    """Return the prompts of documents with the solved examples in front, through the chat template where there is one.

    In a chat the context is the last user turn, and the answers stand at the beginning of the assistant's turn. Only the
    template's own text stands between the two turns: as in lm-evaluation-harness, the delimiter is dropped. The examples are
    in the same turn, or each is two turns of its own.

    Args:
        prompts: of the documents.
        shots: the solved examples.
        kind: of the documents.
        spec: the task; its format and its template count here.
        chat: the chat template, or None.

    Raises:
        TaskError: the template does not render, or takes no system message.
    """
    if chat is None or not spec.as_turns:
        front = shots_text(shots, kind, spec.format)
        prompts = [replace(prompt, context=front + prompt.context) for prompt in prompts]
    if chat is None:
        return list(prompts)
    if problems := chat.check_system(spec.system_prompt):
        raise TaskError(f"task {spec.name!r} cannot be built from {spec.file}", problems)
    chat = chat.asked(spec.system_prompt)
    before = [_turn("system", spec.system_prompt)] if spec.system_prompt is not None else []
    for document in shots if spec.as_turns else ():
        solved = render(document, kind, spec.format)
        before += [_turn("user", solved.context), _turn("assistant", solved.answers[document.gold])]
    try:
        return [
            replace(prompt, context=chat([*before, _turn("user", prompt.context)]), delimiter="") for prompt in prompts
        ]
    except Exception as error:  # a template is a program, which may raise anything
        problem = f"the chat template does not render it ({type(error).__name__}: {error})"
        raise TaskError(f"task {spec.name!r} cannot be built from {spec.file}", [problem]) from error


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def template_of(kind: Kind, spec: TaskSpec) -> str:
    """Return what is recorded of how documents become texts."""
    alone = WITHOUT_DOCUMENT if spec.pmi and kind == "choices" else ""
    return TEMPLATES[kind, spec.format] + (AS_TURNS if spec.as_turns and spec.shots else "") + alone


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
