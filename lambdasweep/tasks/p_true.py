"""A model is asked whether its own answer is right: P(True) is what it then says of the letter for yes.

Source: S. Kadavath et al., "Language models (mostly) know what they know", arXiv 2207.05221, section 3, whose words are the
question called `kadavath`. The text before the letter is the prompt, the answer, and the question: in a chat the answer is
the assistant's turn, and the question is a turn of the user. It is tokenised as a whole, so that it is what anybody gets
who writes the same text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from contract.schemas import REQUESTS
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import unescaped
from lambdasweep.tasks.tokens import Tokenizer, encode_prompts

KADAVATH = "kadavath"
_KADAVATH = "Is the proposed answer:\n (A) True\n (B) False\nThe proposed answer is:"
_LETTERS = ("A", "B")  # right, wrong
# No template holds these itself.
_ASKS = "The question stands here."
_ANSWER = "The answer stands here."
_SLACK = 16  # an answer's text may have more tokens than the model wrote it with


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an answer: the two texts that stand behind it, which differ in the letter."""

    asked: str
    """What the user asked for, in words."""
    right: str
    wrong: str
    tokenizer: Tokenizer
    opens: str | None = None
    """What a prompt in a chat ends with where the answer is a turn of its own, without white space around it."""
    lead: str = ""
    """The white space that the chat template puts in front of such a turn."""

    @property
    def identity(self) -> list[str]:
        """Return what tables say of the question."""
        return [self.right, self.wrong]

    @property
    def length(self) -> int:
        """Return how many tokens the question has."""
        return max(map(len, encode_prompts(self.tokenizer, self.identity)))

    @property
    def tokens(self) -> int:
        """Return how many tokens of a request are to be kept for the question."""
        return self.length + _SLACK

    def requests(self, prompts: Sequence[str], answers: Sequence[str]) -> pa.Table:
        """Return `schemas.REQUESTS` with two rows for each of N answers, first that of the right one.

        What is scored begins with the first token that the two rows do not share: the letter, in the form that it has there.

        Args:
            prompts: [N] the texts that the answers were written to.
            answers: [N] their texts, as they stand behind them.
        """
        both = [prompt + self._turn(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        texts = [text + end for text in both for end in (self.right, self.wrong)]
        ids = encode_prompts(self.tokenizer, texts)
        starts: list[int] = []
        for one, two in zip(ids[::2], ids[1::2], strict=True):
            shortest = min(len(one), len(two))
            starts += [next((at for at in range(shortest) if one[at] != two[at]), shortest)] * 2
        columns: dict[str, Any] = {
            "request_id": range(len(texts)),
            "doc_id": [str(number // 2) for number in range(len(texts))],
            "choice": [number % 2 for number in range(len(texts))],
            "token_ids": ids,
            "continuation_start": starts,
            "continuation_bytes": [1] * len(texts),
            "is_gold": [number % 2 == 0 for number in range(len(texts))],
        }
        return pa.table(columns, schema=REQUESTS)

    def _turn(self, prompt: str, answer: str) -> str:
        """Return an answer as the question finds it behind its prompt."""
        if self.opens is None:
            return answer
        # A prompt of lm-eval may begin the turn itself ("The best answer is"), and the answer goes on there.
        return self.lead + answer.strip() if prompt.endswith(self.opens) else answer.rstrip()


def question_problems(p_true: str | None) -> list[str]:
    """Return what is wrong with a question, if anything."""
    if p_true is None or p_true == KADAVATH:
        return []
    if all(re.search(rf"\b{letter}\b", unescaped(p_true)) for letter in _LETTERS):
        return []
    return [
        f"p_true is {p_true!r}, and a question says what A and B mean, A being that the answer is right: "
        f"give such a text, or {KADAVATH}"
    ]


def question_of(
    p_true: str | None, tokenizer: Tokenizer, chat: ChatTemplate | None, think_end_token: str | None = None
) -> tuple[Question | None, list[str]]:
    """Return the question that a user asked for, None without one, and what is wrong with it.

    Args:
        p_true: `kadavath`, or a text that says what A and B mean; a backslash and an n are a new line.
        tokenizer: of the requests.
        chat: the chat template, where the prompts are turns.
        think_end_token: what ends the thinking before an answer, which the question does not show.
    """
    problems = question_problems(p_true)
    if p_true is None or problems:
        return None, problems
    asked = _KADAVATH if p_true == KADAVATH else unescaped(p_true)
    letters = [f"({letter}" if f"({letter})" in asked else letter for letter in _LETTERS]
    if chat is None:
        if think_end_token is not None:
            return None, [
                "an answer behind thoughts can be asked about in a chat only, because nothing else says what stands between "
                "a prompt and an answer whose thoughts are left out: give --template chat, or leave --p-true out"
            ]
        ends = [f"\n{asked.rstrip()} {letter}" for letter in letters]
        return Question(asked, ends[0], ends[1], tokenizer), []
    chat = chat.asked(None)  # the question stands behind an answer, and a system message stands in front of all
    turns = [("user", _ASKS), ("assistant", _ANSWER), ("user", asked)]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        prompt, text = chat(messages[:1]), chat(messages)
    except Exception as error:  # a template is a program, which may raise anything
        told = f"the chat template does not render a question after an answer ({type(error).__name__}: {error})"
        return None, [f"{told}: leave --p-true out"]
    if asked.strip() not in text or text.count(_ANSWER) != 1:
        return None, ["the chat template does not show a question after an answer: leave --p-true out"]
    front, _, before = text.partition(_ANSWER)
    lead = front.removeprefix(prompt)
    if not front.startswith(prompt) or lead.strip():
        return None, [
            "the chat template opens a reply with what it does not put in front of an answer that is there, such as an open "
            "<think>, so that letters and answers would stand among thoughts: leave --p-true out"
        ]
    opens = prompt.rpartition(_ASKS)[2]
    return Question(asked, before + letters[0], before + letters[1], tokenizer, opens, lead), []
