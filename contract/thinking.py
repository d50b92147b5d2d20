"""What of an output is its answer, where the model thinks first: as lm-eval 0.4.13 does with `think_end_token`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """Where the answer is in an output."""

    text: str  # from there on, without white space in front
    first: int  # the token after the last one that ends thinking by its id; 0 where thinking ends by a text
    offset: int  # the place of `text` in the text of the tokens from `first` on
    is_after: bool  # whether thinking ended; otherwise all of the output is its answer, as in lm-eval


def answer_part(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], think_end_token: str | None
) -> AnswerPart:
    """Find the answer of an output: what follows the last end of thinking.

    Args:
        token_ids: of the output.
        decode: tokens → text.
        think_end_token: a text, or the digits of a token's id; None: all of the output is its answer, as it is.
    """
    if think_end_token is None:
        return AnswerPart(decode(token_ids), 0, 0, False)
    first = 0
    if think_end_token.isdecimal():
        ends = [place for place, token in enumerate(token_ids) if token == int(think_end_token)]
        first = ends[-1] + 1 if ends else 0
        whole = text = decode(token_ids[first:])
        is_after = bool(ends)
    else:
        whole = decode(token_ids)
        text = whole.split(think_end_token)[-1]
        is_after = think_end_token in whole
    text = text.lstrip()
    return AnswerPart(text, first, len(whole) - len(text), is_after)
