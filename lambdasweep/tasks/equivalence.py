"""Which written answers of a document mean the same, by a model of natural language inference that lies on disk.

Two answers mean the same where each entails the other, both behind the question [L. Kuhn, Y. Gal, S. Farquhar, "Semantic
uncertainty", ICLR 2023, algorithm 1]: an answer joins the first class whose first answer it means the same as. Answers that
the normaliser takes for the same are not asked about, and neither is no answer.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[str, str]  # premise, hypothesis

_AT_ONCE = 32  # pairs
_FILES = ("config.json", "tokenizer.json", "*.safetensors", "*.bin")
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Equivalence:
    """A model of natural language inference."""

    directory: Path
    sha256: str
    """The hash of its files."""
    entailment: int
    """The number of the label for entailment."""

    def judge(self) -> Callable[[Sequence[Pair]], list[bool]]:
        """Load the model, on the CPU; return what tells of pairs whether the premise entails the hypothesis."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.directory, trust_remote_code=False, local_files_only=True, dtype="float32"
        )
        model.eval().requires_grad_(False)

        def entails(pairs: Sequence[Pair]) -> list[bool]:
            found: list[bool] = []
            for begin in range(0, len(pairs), _AT_ONCE):
                some = pairs[begin : begin + _AT_ONCE]
                texts = [list(one) for one in zip(*some, strict=True)]
                inputs: Any = tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")
                found += (model(**inputs).logits.argmax(-1) == self.entailment).tolist()
            return found

        return entails


def read_equivalence(directory: str | None) -> tuple[Equivalence | None, list[str]]:
    """Look at a model that a user gives, None where there is none; and return what is wrong with it, if anything."""
    if directory is None:
        return None, []
    path = Path(directory)
    wanted = "give the directory of a model that classifies pairs of texts, with a label for entailment"
    try:
        labels = json.loads((path / "config.json").read_text(encoding="utf-8"))["id2label"]
        named = [int(number) for number, name in labels.items() if str(name).lower().startswith("entail")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [f"equivalence is {directory}, whose config.json has no labels ({error!r}): {wanted}"]
    if len(named) != 1:
        return None, [
            f"equivalence is {directory}, and its labels are {', '.join(map(str, labels.values()))}: {wanted}"
        ]
    digest = hashlib.sha256()
    for file in sorted(one for pattern in _FILES for one in path.glob(pattern)):
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return Equivalence(path, digest.hexdigest(), named[0]), []


def same_meaning(
    question: str, answers: Sequence[str], classes: Sequence[str], entails: Callable[[Sequence[Pair]], list[bool]]
) -> list[str]:
    """Return the class of each of K answers of a document, named as the class of its first answer was.

    Args:
        question: the document's.
        answers: [K] in the order in which they were written.
        classes: [K] what the normaliser makes of them; empty where there is no answer.
        entails: tells of pairs whether the premise entails the hypothesis.
    """
    merged: dict[str, str] = {}  # what became of each class of the normaliser
    first: dict[str, str] = {}  # the text of the first answer of each class that is left
    for answer, own in zip(answers, classes, strict=True):
        if own in merged:
            continue
        merged[own] = own
        if not own:
            continue
        text, others = f"{question} {answer}", list(first)
        said = entails([pair for one in others for pair in ((first[one], text), (text, first[one]))])
        both = [one for one, there, back in zip(others, said[::2], said[1::2], strict=True) if there and back]
        if both:
            merged[own] = both[0]
        else:
            first[own] = text
    return [merged[own] for own in classes]
