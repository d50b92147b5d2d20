"""This makes the inputs of the benchmarks' smallest runs (`--tiny`): the demo pair and its questions, in one folder.

Such a run takes seconds, needs no file and no other tool's environment, and is a test that the benchmark works.
"""

import json
from pathlib import Path
from typing import Any

from lambdasweep.demo import ALIGNED, BASE, CLOZE, LETTERS

ROWS = 24
WINDOW = 512  # tokens, which is the demo pair's window


def write_tiny_inputs(folder: Path) -> Path:
    """Write `base`, `aligned` and small task files, named as those of the evaluation sets, into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parent in (("base", BASE), ("aligned", ALIGNED)):
        (folder / name).symlink_to(parent)
    letters, cloze = _rows(LETTERS), _rows(CLOZE)
    _write(folder / "arc_easy.jsonl", [{key: row[key] for key in ("query", "choices", "gold")} for row in letters])
    # Each row has two answers, and in every other row the second one is right.
    halves = [(row["choices"][row["gold"]], row["choices"][row["gold"] - 1]) for row in cloze]
    pairs = [pair[:: -1 if number % 2 else 1] for number, pair in enumerate(halves)]
    two = [{"query": row["query"], "choices": pairs[n], "gold": n % 2} for n, row in enumerate(cloze)]
    _write(folder / "piqa.jsonl", two)
    passages = [{"context": row["query"] + "\nAnswer:", "continuation": row["choices"][row["gold"]]} for row in cloze]
    _write(folder / "lambada_1000.jsonl", passages * 20)  # several texts are put together to a long one
    _write(folder / "triviaqa_1000.jsonl", [row | {"aliases": [row["continuation"]]} for row in passages])
    sums = [(a, b) for a in range(4) for b in range(3)]
    _write(
        folder / "gsm8k_500.jsonl",
        [{"context": f"What is {a} and {b}?", "chain_of_thought": f"{a} and {b}.", "answer": a + b} for a, b in sums],
    )
    return folder


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:ROWS]]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
