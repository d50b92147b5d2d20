"""This judges whether a text follows verifiable instructions, as IFEval (Zhou et al., 2023) does: strictly, and loosely.

A task's YAML file names these functions with `!function`, so the file lies beside it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "no commas": lambda text, _: "," not in text,
    "lower case": lambda text, _: text == text.lower(),
    "at most words": lambda text, most: len(text.split()) <= most,
    "at least sentences": lambda text, least: len(re.findall(r"[.!?](?=\s|$)", text)) >= least,
    "has": lambda text, word: re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None,
    "starts with": lambda text, start: text.strip().lower().startswith(start.lower()),
    "ends with": lambda text, end: text.strip().lower().endswith(end.lower()),
    "quoted": lambda text, _: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
}


def _followed(text: str, instruction: Sequence[Any]) -> bool:
    kind, value = instruction
    return bool(text.strip()) and CHECKS[kind](text, value)


def _variants(text: str) -> list[str]:
    """Return the texts of which one must follow an instruction to follow it loosely: without marks, first and last line."""
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    return [*cut, *(one.replace("*", "") for one in cut)]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return what lm-eval gathers of a document whose model wrote `results[0]`."""
    (text,) = results
    strict = [_followed(text, one) for one in doc["instructions"]]
    loose = [any(_followed(variant, one) for variant in _variants(text)) for one in doc["instructions"]]
    return {
        "prompt_level_strict_acc": all(strict),
        "inst_level_strict_acc": strict,
        "prompt_level_loose_acc": all(loose),
        "inst_level_loose_acc": loose,
    }


def share_of_instructions(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all instructions that are followed."""
    flat = [one for item in items for one in item]
    return sum(flat) / len(flat)
