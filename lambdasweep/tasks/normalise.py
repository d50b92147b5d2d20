"""A normaliser finds the answer in an output, and says which answers say the same: those of one class.

Rows of one's own are graded by classes: an output is right if its answer is of the class of one of the row's answers. For
tasks of lm-eval, whose own filters find and grade the answer, classes only say which samples agree.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

# A sign belongs to a number unless a word, a number or a bracket stands in front of it, as in 10-12 and Apollo-11.
_SIGN = "[-+−]"
# Of numbers with several points nothing is made: 1.000.000 may be a million, or a version.
_DIGITS = r"(?:\d+(?:\.\d+){2,}|\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+−]?\d{1,2}\b)?"
_FRACTION = r"(?<![\d/.,])(?:\d{1,9} )?\d{1,9}/[1-9]\d{0,8}(?![\d/]|[.,]\d)"
_NUMBER = re.compile(rf"(?:(?<![^\W_])(?<![).]){_SIGN}(?:[$€£] ?)?)?(?:{_FRACTION}|{_DIGITS})")
_WHOLE_NUMBER = re.compile(
    rf"(?:{_SIGN}\s*)?[$€£]?\s*{_SIGN}?(?:(?:\d{{1,9}} )?\d{{1,9}}/[1-9]\d{{0,8}}|{_DIGITS}|\d[\d,]*\.)\s*%?\.?"
)
_FRACTION_OF = re.compile(r"(-?)(?:(\d+) )?(\d+)/(\d+)")

# "A" and "I" are words, too: in front of a word in lower case they are no letters of choices, unless it is one of these.
_GOES_ON = (
    "although|and|as|because|but|by|can|does|due|fits|for|given|has|here|if|instead|is|makes|matches|means|must|not|only|or|"
    "over|rather|says|seems|should|since|than|that|was|when|where|which|while|with|would"
)
_CAPITAL = rf"(?:([B-HJ-Z])\b(?!['’])|([AI])\b(?!['’]|\s+[a-z])|(A)\b(?=\s+(?:{_GOES_ON})\b))"
_OPENS = r"(?:\\[a-z]{1,9}\{|[\s*_\"'`“‘${<])*+(?:(?i:option|choice)\s[\s*_\"'`“‘${<]*+)?+"
_ENDS = r"(?=[\s*_\"'”’)\]$}]*+(?:[.,;:)\n!?<]|$))"
_ANSWER = r"(?i:\banswer\b)[*_\"'”’]*+\s*+"
_SAID_LETTER = re.compile(
    rf"{_ANSWER}(?:(?i:is\b)(?:\s*+:)?+{_OPENS}(A)\b(?!['’])|(?:(?i:is\b)(?:\s*+:)?+|[:=>]){_OPENS}"
    rf"(?:[(\[]([A-Za-z])[)\]]|{_CAPITAL}|([a-z])\b{_ENDS}))"
)
_BARE_LETTER = re.compile(rf"{_ANSWER}(?:[(\[]([A-Za-z])[)\]]|([A-HJ-Z])\b{_ENDS})")
_LONE_LETTER = re.compile(r"\W*([A-Za-z])\W*")
_FIRST_LETTER = re.compile(rf"\W*{_CAPITAL}")
_ANY_LETTER = re.compile(rf"(?<![^\W_]){_CAPITAL}")


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
    """Return the last number of the output: 1,000.0 is of the class of 1000, 1/2 of that of 0.5, 15e-1 of that of 1.5."""
    found = [*_NUMBER.finditer(output)]
    return Found(found[-1][0], _canonical(found[-1][0]), found[-1].start()) if found else Found("", "")


def numbers_in(text: str) -> int:
    """Return how many numbers stand in a text."""
    return len(_NUMBER.findall(text))


def letter(output: str) -> Found:
    """Return the letter of a choice: the last one behind "answer is" or "answer:", else the one that the output begins with,
    else one behind "answer", else its last single capital letter. "A" and "I" do not count where they are words."""
    match = _LONE_LETTER.fullmatch(output) or _last(_SAID_LETTER, output) or _FIRST_LETTER.match(output)
    match = match or _last(_BARE_LETTER, output) or _last(_ANY_LETTER, output)
    if match is None:
        return Found("", "")
    place = match.lastindex or 1
    return Found(match[place], match[place].upper(), match.start(place))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed([*pattern.finditer(text)]), None)


def auto(output: str) -> Found:
    """Return the whole output; its class is the number that it is, with or without a sign of currency, else that of SQuAD.

    SQuAD's takes signs and points out of numbers, so that −5 would be 5.
    """
    text = output.strip()
    if _WHOLE_NUMBER.fullmatch(text):
        return Found(text, _canonical(text.rstrip(".").rstrip("% ")))
    return squad(output)


def _canonical(text: str) -> str:
    plain = re.sub(r"[$€£]", "", text).replace("−", "-").replace(",", "").rstrip(".")
    plain = re.sub(r"^([-+]?)\s*", r"\1", plain)
    if match := _FRACTION_OF.fullmatch(plain.lstrip("+")):
        sign, whole, above, below = match.groups()
        value = int(whole or 0) + Fraction(int(above), int(below))
        value = -value if sign else value
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        # Where no decimal number is it, it stays a fraction, in lowest terms.
        return str(value) if Fraction(exact) != value else f"{exact.normalize() + 0:f}"
    try:
        return f"{Decimal(plain).normalize() + 0:f}"  # + 0 turns −0 into 0
    except InvalidOperation:
        return text


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
