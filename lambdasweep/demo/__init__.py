"""This folder holds a demo pair of a few MB, with two tasks whose right confidences are known exactly.

`base` learned the synthetic world of `world.py` by likelihood, `aligned` was then post-trained from it by direct
preference optimisation. `examples/train_demo_pair.py` makes every file in this folder; none of it is edited by hand.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

BASE = _HERE / "base"
"""Hugging Face checkpoint before post-training."""

ALIGNED = _HERE / "aligned"
"""Hugging Face checkpoint after post-training: same architecture, same tokenizer."""

LETTERS = _HERE / "letters.jsonl"
"""Questions whose answer is a letter; one JSON object a line: query, choices, gold, posterior."""

CLOZE = _HERE / "cloze.jsonl"
"""Other questions of the same world, answered with the full text of a choice; same fields."""
