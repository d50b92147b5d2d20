"""The page of troubleshooting has no message that the code does not say any more."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from lambdasweep.settings import SamplingSettings, TaskSettings, problems_of
from tests.support.paths import ROOT
from tests.support.sources import parsed

_FOLDERS = ("contract", "merge", "calibration", "serve", "ray_jobs", "lambdasweep")
_LEAST = 12  # characters of a part of a message that must be found; shorter ones stand anywhere
# The heads of columns that hold messages, and those of columns that hold words about them.
_MESSAGES = {"message", "warning", "reason", "of a table of scores", "of a requests table"}
_OTHERS = {"cause", "way out", "meaning", "symptom"}  # symptoms are what other programs say
# These begin messages whose rest is another text of the sources, or what is put into such a text.
_BEGINS = {
    "the server ": "the server …; what is measured is kept",
    "the command was ": "the command …; … ends with",
    "give ": "… is …: give …",
}
# These messages hold names in the places of placeholders and little else.
_COMPOSED = {
    "[[task]] 2: it needs name and file": "it needs …",
    "… has neither model.safetensors nor model.safetensors.index.json": "… has neither … nor …",
    "… has no adapter_model.safetensors": "… has no …",
    "task … has no tokens: it is sampled": "task … has no …: ",
    "task … has no generations: it is scored": "task … has no …: ",
}


def _plain(text: str) -> str:
    """Return a text with `…` in the place of flags, numbers and names, which differ between a message and its template."""
    text = re.sub(r"--[a-z][a-z-]*|-?\d+(\.\d+)*", "…", text.replace("`", "").replace("\\|", "|"))
    return re.sub(r"…(\s*…)*", "…", re.sub(r"\s+", " ", text))


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that have a name in a module."""
    named = [(one.targets[0], one.value) for one in tree.body if isinstance(one, ast.Assign)]
    return {
        target.id: value.value
        for target, value in named
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _template(node: ast.JoinedStr, constants: dict[str, str]) -> str:
    parts = []
    for one in node.values:
        put = one.value if isinstance(one, ast.FormattedValue) else one
        name = put.id if isinstance(put, ast.Name) else ""
        parts.append(str(put.value) if isinstance(put, ast.Constant) else constants.get(name, "…"))
    return "".join(parts)


@cache
def templates() -> tuple[str, ...]:
    """Return every text in the sources, with `…` in the place of what is put into it."""
    trees = [parsed(path.read_text(encoding="utf-8")) for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py")]
    named = [(name, text) for tree in trees for name, text in _constants(tree).items() if not name.startswith("_")]
    everywhere = {name: text for name, text in named if {text} == {other for one, other in named if one == name}}
    found = []
    for tree in trees:
        constants = everywhere | _constants(tree)  # names that mean several texts are as good as placeholders
        docstrings = set()
        for node in ast.walk(tree):  # a statement comes before what is in it
            if isinstance(node, ast.Expr):
                docstrings.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append(_plain(_template(node, constants)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(_plain(node.value))
    values: dict[str, object] = {"format": "?", "template": "?"} | dict.fromkeys(("limit", "samples", "max_tokens"), 0)
    for group in (TaskSettings, SamplingSettings):
        found += [_plain(text.replace("'?'", "…")) for text in problems_of(values | {"shots": -1}, group, str)]
    return tuple(dict.fromkeys(found))


@cache
def everything() -> str:
    return "\n".join(templates())


@cache
def with_placeholders() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the longest part of each template that has enough besides placeholders, and what it makes."""
    parts = [template.split("…") for template in templates() if "…" in template]
    enough = [one for one in parts if sum(map(len, one)) >= _LEAST]
    return tuple((max(one, key=len), re.compile(".+".join(map(re.escape, one)))) for one in enough)


def messages() -> Iterator[tuple[int, str]]:
    """Yield each line of the page that has a message in a table, and what the table's cell says.

    Raises:
        AssertionError: a table has a column that is not known here.
    """
    columns: list[int] | None = None
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("|"):
            columns = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if columns is None:
            assert set(cells) <= _MESSAGES | _OTHERS, f"line {number}: {cells}"
            columns = [place for place, cell in enumerate(cells) if cell in _MESSAGES]
        elif set(line) - set("|-"):
            yield from ((number, cells[place]) for place in columns if cells[place])


def is_said(message: str) -> bool:
    """Tell whether a message of the page is what the sources say.

    Either its long parts between placeholders are there, or all of it, or what stands behind a colon in it, is one template
    with something put into it. The parts of a message without long ones must be in one template, in their order.
    """
    text = _COMPOSED.get(message, message)
    for begin, template in _BEGINS.items():
        if text.startswith(begin):
            assert _plain(template) in everything(), template
            text = text.removeprefix(begin)
    text = _plain(text)
    parts = [part.strip(" :;,.()") for part in re.split("…|[:;] ", text)]
    long = [part for part in parts if len(part) >= _LEAST]
    if long and all(part in everything() for part in long) and (long[-1] != parts[-1] or _ends_a_message(parts[-1])):
        return True
    ends = [text, *(text[found.end() :] for found in re.finditer(": ", text))]
    if any(longest in end and made.fullmatch(end) for end in ends for longest, made in with_placeholders()):
        return True
    in_order = [re.compile(".+".join(map(re.escape, end.rstrip("… ").split("…")))) for end in ends]
    return not long and any(one.search(template) for one in in_order if one.pattern for template in templates())


def _ends_a_message(part: str) -> bool:
    """Tell whether a part of a message is somewhere not followed by more of a list, or of a word."""
    return re.search(rf"{re.escape(part)}(?!,|\w)", everything()) is not None


MESSAGES = list(messages())


@pytest.mark.parametrize(("line", "cell"), MESSAGES, ids=[f"line {line}" for line, _ in MESSAGES])
def test_a_row_has_what_the_code_says(line: int, cell: str) -> None:
    """Each message in a row is looked for; flags and settings alone, behind "and likewise", are none."""
    quoted = re.findall(r"`([^`]+)`", cell)
    assert quoted, f"line {line} quotes nothing"
    wrong = [text for text in quoted if " " in text and not is_said(text)]
    assert not wrong, f"line {line}: no source says {wrong}"
    assert any(" " in text for text in quoted), f"line {line} quotes no message"
