"""A normaliser finds the answer in an output, and says which answers say the same: those of one class.

Rows of one's own are graded by classes: an output is right if its answer is of the class of one of the row's answers. For
tasks of lm-eval, whose own filters find and grade the answer, classes only say which samples agree.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_WHOLE_NUMBER = re.compile(r"[-+]?[$€£]?\s*[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)\s*%?\.?")
# "a" and "I" are words, too: behind "answer" they count only where the sentence ends with them.
_SAID_LETTER = re.compile(
    r"(?i:\banswer\b(?:\s+is)?)\s*[:=]?\s*(?:\(([A-Za-z])\)|([B-HJ-Z])\b|([A-Za-z])\b(?=\s*(?:[.,;:)\n]|$)))"
)
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_FIRST_LETTER = re.compile(r"\W*([A-Z])\b(?!')")
_ANY_LETTER = re.compile(r"\b([A-Z])\b(?!')")


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, as it stands in the output, and its class; both are empty where there is none."""

    answer: str
    answer_class: str
    start: int | None = None  # the place in the output; None where it is the last one at which the answer stands


def exact(output: str) -> Found:
    """Return the whole output without the white space around it."""
    return Found(output.strip(), output.strip())


def squad(output: str) -> Found:
    """Return the whole output; its class is in lower case, without punctuation and articles, with single spaces.

    P. Rajpurkar et al., "SQuAD", EMNLP 2016, evaluation script 1.1.
    """
    from calibration.metrics.diversity import normalised

    return Found(output.strip(), normalised(output))


def number(output: str) -> Found:
    """Return the last number of the output; 1,000.0 is of the class of 1000."""
    found = _NUMBER.findall(output)
    return Found(found[-1], _canonical(found[-1])) if found else Found("", "")


def letter(output: str) -> Found:
    """Return the letter of a choice: the last one behind "answer is" or "answer:", else the one that the output begins with,
    else its last single capital letter."""
    match = _LONE_LETTER.fullmatch(output) or next(reversed([*_SAID_LETTER.finditer(output)]), None)
    match = match or _FIRST_LETTER.match(output) or next(reversed([*_ANY_LETTER.finditer(output)]), None)
    if match is None:
        return Found("", "")
    place = match.lastindex or 1
    return Found(match[place], match[place].upper(), match.start(place))


def auto(output: str) -> Found:
    """Return the whole output; its class is the number that it is, with or without a sign of currency, else that of SQuAD.

    SQuAD's takes signs and points out of numbers, so that −5 would be 5.
    """
    text = output.strip()
    if _WHOLE_NUMBER.fullmatch(text):
        return Found(text, _canonical(re.sub(r"[$€£%\s]", "", text)))
    return squad(output)


def _canonical(text: str) -> str:
    try:
        value = Decimal(text.replace(",", "").rstrip("."))
    except InvalidOperation:
        return text
    return f"{value.normalize() + 0:f}"  # + 0 turns −0 into 0


NORMALISERS: dict[str, Callable[[str], Found]] = {
    "auto": auto,
    "exact": exact,
    "squad": squad,
    "number": number,
    "letter": letter,
}


def is_right(found: Found, answers: Sequence[str], normaliser: str) -> bool:
    """Tell whether an answer is of the class of one of a row's answers; no answer is never right."""
    classes = {NORMALISERS[normaliser](answer).answer_class for answer in answers}
    return bool(found.answer_class) and found.answer_class in classes
