"""Rows of data sets become rows of a task file: which columns hold the question, the choices and the right one.

What ARC, MMLU, PIQA and their likes call them is known; anything else is said by the user.
"""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.errors import InputError

_QUESTIONS = ("query", "question", "goal", "sentence", "ctx", "input", "prompt")
_GOLDS = ("gold", "answerKey", "answer", "label", "target", "correct")
# Columns that hold one choice each: those of PIQA, of COPA, of WinoGrande, and A, B, C and D.
_CHOICES = (("sol1", "sol2"), ("choice1", "choice2"), ("option1", "option2"), ("A", "B", "C", "D"))
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which columns of a row hold what."""

    query: str
    choices: tuple[str, ...]  # one column with all choices, or one for each
    gold: str

    @staticmethod
    def parse(text: str) -> "ColumnMap":
        """Return what `query=QUESTION,choices=A+B+C+D,gold=ANSWER` says.

        Raises:
            InputError: it says something else.
        """
        given = dict(part.partition("=")[::2] for part in text.split(","))
        if set(given) != {"query", "choices", "gold"} or not all(given.values()):
            raise InputError(
                f"--columns {text!r} is not query=COLUMN,choices=COLUMN,gold=COLUMN; columns of one choice each are joined "
                "by +, as in choices=A+B+C+D"
            )
        return ColumnMap(given["query"], tuple(given["choices"].split("+")), given["gold"])


def find_columns(names: Sequence[str]) -> ColumnMap:
    """Return the columns of a data set that this module knows.

    Raises:
        InputError: it does not know them.
    """
    query = next((name for name in _QUESTIONS if name in names), None)
    gold = next((name for name in _GOLDS if name in names), None)
    choices = ("choices",) if "choices" in names else next((some for some in _CHOICES if set(some) <= set(names)), None)
    if query is None or gold is None or choices is None:
        raise InputError(
            f"the columns {', '.join(names)} are not known: say which is which with "
            "--columns query=COLUMN,choices=COLUMN,gold=COLUMN"
        )
    return ColumnMap(query, choices, gold)


def convert(rows: Iterable[Mapping[str, Any]], columns: ColumnMap | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a task file: query, choices, gold as an index from 0, and the row's id where it has one.

    The right choice may be given as a letter, as a label that stands beside the choices (ARC), as an index, or as the text
    of the choice. Numbers from 1 (WinoGrande) and those from 0 (PIQA) are told apart by all rows together.

    Args:
        rows: of the data set.
        columns: what they hold; None: what `find_columns` knows.

    Raises:
        InputError: with every kind of row that cannot be converted.
    """
    rows = list(rows)
    if not rows:
        raise InputError("the data set has no rows")
    columns = columns or find_columns(list(rows[0]))
    first = _first_index(rows, columns)
    problems: dict[str, list[int]] = {}
    done = []
    for number, row in enumerate(rows, start=1):
        try:
            done.append(_row(row, columns, first))
        except InputError as error:
            problems.setdefault(error.title, []).append(number)
    if problems:
        said = [
            f"row {', '.join(map(str, at[:3]))}{f' and {len(at) - 3} more' if len(at) > 3 else ''}: {problem}"
            for problem, at in problems.items()
        ]
        raise InputError("the data set cannot be converted", said[:_SHOWN])
    yield from done


def _row(row: Mapping[str, Any], columns: ColumnMap, first: int) -> dict[str, Any]:
    missing = [name for name in (columns.query, *columns.choices, columns.gold) if row.get(name) is None]
    if missing:
        raise InputError(f"it has no {', '.join(missing)}")
    choices, labels = _choices(row, columns)
    found = {
        "query": str(row[columns.query]),
        "choices": choices,
        "gold": _gold(row[columns.gold], choices, labels, first),
    }
    names = [row[name] for name in ("id", "ind", "idx", "question_id") if isinstance(row.get(name), (str, int))]
    return {"id": names[0], **found} if names else found


def _choices(row: Mapping[str, Any], columns: ColumnMap) -> tuple[list[str], list[str] | None]:
    """Return the texts of the choices, and their labels where they have some."""
    if len(columns.choices) > 1:
        return [str(row[name]) for name in columns.choices], None
    value = row[columns.choices[0]]
    if isinstance(value, Mapping) and "text" in value:  # ARC's
        labels = value.get("label")
        return list(map(str, value["text"])), list(map(str, labels)) if labels is not None else None
    if isinstance(value, (list, tuple)):
        return list(map(str, value)), None
    raise InputError(f"{columns.choices[0]} is {type(value).__name__}, and no list of choices")


def _first_index(rows: Sequence[Mapping[str, Any]], columns: ColumnMap) -> int:
    """Return 1 where the numbers of the right choices count from 1: none is 0, and some is as large as there are choices."""
    numbers = []
    for row in rows:
        value = row.get(columns.gold)
        if isinstance(value, bool) or not str(value).strip().isdigit():
            return 0
        numbers.append(int(str(value)))
    most = len(columns.choices) if len(columns.choices) > 1 else None
    return int(0 not in numbers and most is not None and max(numbers) == most)


def _gold(value: Any, choices: Sequence[str], labels: Sequence[str] | None, first: int) -> int:
    text = str(value).strip()
    if labels is not None and text in labels:
        return labels.index(text)
    found = index_of(value, choices)
    if isinstance(value, str) and text.isdigit():
        found = int(text)
    if found is None:
        raise InputError(f"the right choice is {value!r}, which is no index, no letter and no text of one")
    found -= first
    if not 0 <= found < len(choices):
        raise InputError(f"the right choice is {value!r}, and there are {len(choices)}")
    return found


def index_of(value: Any, choices: Sequence[str]) -> int | None:
    """Return the index that a right choice means where there is no doubt: a number, a letter, or the text of one choice.

    A text that is a letter as well as the text of another choice, and a number in quotes, which may count from 0 or from 1,
    are doubtful.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        return None
    text = value.strip()
    meant = {place for place, choice in enumerate(choices) if choice.strip() == text}
    if len(text) == 1 and text in string.ascii_uppercase[: len(choices)]:
        meant.add(string.ascii_uppercase.index(text))
    return meant.pop() if len(meant) == 1 else None
