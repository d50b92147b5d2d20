"""A normaliser finds the answer in an output, and says which answers say the same: those of one class.

Rows of one's own are graded by classes: an output is right if its answer is of the class of one of the row's answers. For
tasks of lm-eval, whose own filters find and grade the answer, classes only say which samples agree.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction

# A sign belongs to a number unless a word, a number or a bracket stands in front of it, as in 10-12 and Apollo-11.
_SIGN = "[-+−]"
_DIGITS = r"(?:\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+−]?\d{1,2}\b)?"
_FRACTION = r"(?<![\d/.,])\d+/\d+(?![\d/]|\.\d)"
_NUMBER = re.compile(rf"(?:(?<![\w).]){_SIGN})?(?:{_FRACTION}|{_DIGITS})")
_WHOLE_NUMBER = re.compile(rf"{_SIGN}?[$€£]?\s*{_SIGN}?(?:\d+/\d+|{_DIGITS}|\d[\d,]*\.)\s*%?\.?")
_THOUSANDS = re.compile(r"\d{1,3}(?:\.\d{3}){2,}")

# "A" and "I" are words, too. They count as letters of choices at the end of a phrase, and A in front of a word that no noun
# phrase begins with.
_GOES_ON = "although|and|as|because|but|for|here|is|not|or|rather|since|than|that|was|which|while|with|would"
_ENDS = r"(?=[*_\"'”’)\]]*\s*(?:[.,;:)\n]|$))"
_CAPITAL = rf"(?:([B-HJ-Z])\b(?!['’])|([AI])\b{_ENDS}|(A)\b(?=[*_\"'”’)\]]*\s+(?:{_GOES_ON})\b))"
_OPENS = r"[\s*_\"'`“‘]*(?:(?i:option|choice)\s+[*_\"'`“‘]*)?"
_SAID_LETTER = re.compile(
    rf"(?i:\banswer\b)[*_]*\s*(?:(?i:is\b)\s*:?{_OPENS}(A)\b(?!['’])|(?:(?i:is\b)\s*:?|[:=]){_OPENS}"
    rf"(?:[(\[]([A-Za-z])[)\]]|{_CAPITAL}|([a-z])\b{_ENDS}))"
)
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_FIRST_LETTER = re.compile(rf"\W*{_CAPITAL}")
_ANY_LETTER = re.compile(rf"\b{_CAPITAL}")


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
    """Return the last number of the output; 1,000.0 is of the class of 1000, and 1/2 of that of 0.5."""
    found = [*_NUMBER.finditer(output)]
    return Found(found[-1][0], _canonical(found[-1][0]), found[-1].start()) if found else Found("", "")


def numbers_in(text: str) -> int:
    """Return how many numbers stand in a text."""
    return len(_NUMBER.findall(text))


def letter(output: str) -> Found:
    """Return the letter of a choice: the last one behind "answer is" or "answer:", else the one that the output begins with,
    else its last single capital letter. "A" and "I" do not count where they are words."""
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
    above, _, below = text.replace("−", "-").replace(",", "").rstrip(".").partition("/")
    if _THOUSANDS.fullmatch(above.lstrip("+-")):
        above = above.replace(".", "")
    try:
        value = Fraction(Decimal(above)) / Fraction(below or 1)
        rest = value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        if rest > 1:  # no decimal number is it
            return str(value)
    except (ArithmeticError, ValueError):  # nothing can be divided by 0, and Python writes no number of 4,300 digits
        return text
    with localcontext() as context:
        context.prec = 5000
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        return f"{exact.normalize() + 0:f}"  # + 0 turns −0 into 0


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
