"""This module says which written answers of a document mean the same, by a model that lies on disk.

By a model of natural language inference two answers mean the same where each entails the other, both behind the question
[L. Kuhn, Y. Gal, S. Farquhar, "Semantic uncertainty", ICLR 2023, algorithm 1]; by one of sentence embeddings, where their
cosine is large enough (`embedding`). An answer joins the first class whose first answer it means the same as. Answers that
the normaliser takes for the same are not asked about, and neither is no answer. Texts that are longer than the model takes
entail nothing and are entailed by nothing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lambdasweep.tasks.embedding import embedding_model_of, is_of_embeddings
from lambdasweep.tasks.text_window import fitting, text_window

TwoAnswers = tuple[str, str]  # two answers to a question
Judge = Callable[
    [str, Sequence[TwoAnswers]], list[bool]
]  # tells, of a question's answers, what the first one of a pair entails

_AT_ONCE = 32  # pairs
_FILES = (
    "config.json", "tokenizer.json", "*.safetensors", "*.bin", "modules.json", "*/config.json",
    "sentence_*_config.json", "*/sentence_*_config.json", "*/tokenizer.json", "*/*.safetensors", "*/*.bin",
)  # fmt: skip
_CHUNK = 1 << 22


class Equivalence(Protocol):
    """A model that says which answers mean the same."""

    @property
    def recorded(self) -> str:
        """Return what a run says of it: the hash of its files, and what it was set to."""

    def judge(self) -> Judge:
        """Load the model, on the CPU; return what tells of pairs whether the first answer entails the second one."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A model of natural language inference."""

    directory: Path
    recorded: str
    """The hash of its files."""
    entailment: int
    """The number of the label for entailment."""

    def judge(self) -> Judge:
        """Load the model, on the CPU; return what tells of pairs whether the first answer entails the second one."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.directory, trust_remote_code=False, local_files_only=True, dtype="float32"
        )
        model.eval().requires_grad_(False)

        window = text_window(tokenizer, model.config)

        def entails(question: str, pairs: Sequence[TwoAnswers]) -> list[bool]:
            found: list[bool] = []
            for begin in range(0, len(pairs), _AT_ONCE):
                some = [(f"{question} {one}", f"{question} {two}") for one, two in pairs[begin : begin + _AT_ONCE]]
                texts = [list(one) for one in zip(*some, strict=True)]
                fits = fitting(tokenizer, window, *texts)
                said = [False] * len(some)
                if any(fits):
                    read = [[text for text, fit in zip(side, fits, strict=True) if fit] for side in texts]
                    inputs: Any = tokenizer(*read, padding=True, return_tensors="pt")
                    entailed = iter((model(**inputs).logits.argmax(-1) == self.entailment).tolist())
                    said = [fit and next(entailed) for fit in fits]
                found += said
            return found

        return entails


def read_equivalence(directory: str | None) -> tuple[Equivalence | None, list[str]]:
    """Look at a model that a user gives, None where there is none; and return what is wrong with it, if anything."""
    if directory is None:
        return None, []
    path, threshold = _parted(directory)
    if is_of_embeddings(path):
        found, problems = embedding_model_of(path, threshold, _digest(path))
        return found, [f"equivalence is {directory}, {problem}" for problem in problems]
    if threshold is not None:
        return None, [
            f"equivalence is {directory}, and {path} is no model of sentence embeddings: leave @{threshold} out"
        ]
    wanted = (
        "give the directory of a model that classifies pairs of texts, with a label for entailment, or of one of sentence "
        "embeddings"
    )
    try:
        labels = json.loads((path / "config.json").read_text(encoding="utf-8"))["id2label"]
        named = [int(number) for number, name in labels.items() if str(name).lower().startswith("entail")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, [f"equivalence is {directory}, whose config.json has no labels ({error!r}): {wanted}"]
    if len(named) != 1:
        return None, [
            f"equivalence is {directory}, and its labels are {', '.join(map(str, labels.values()))}: {wanted}"
        ]
    return Inference(path, _digest(path), named[0]), []


def _parted(directory: str) -> tuple[Path, str | None]:
    """Return the directory and the threshold of `DIRECTORY@0.9`."""
    path, at, threshold = directory.rpartition("@")
    return (Path(path), threshold) if at and not Path(directory).is_dir() else (Path(directory), None)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(one for pattern in _FILES for one in path.glob(pattern)):
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def same_meaning(question: str, answers: Sequence[str], classes: Sequence[str], entails: Judge) -> list[str]:
    """Return the class of each of K answers of a document, named as the class of its first answer was.

    Args:
        question: the document's.
        answers: [K] in the order in which they were written.
        classes: [K] what the normaliser makes of them; empty where there is no answer.
        entails: tells of pairs of answers whether the first one entails the second one.
    """
    merged: dict[str, str] = {}  # what became of each class of the normaliser
    first: dict[str, str] = {}  # the text of the first answer of each class that is left
    for answer, own in zip(answers, classes, strict=True):
        if own in merged:
            continue
        merged[own] = own
        if not own:
            continue
        others = list(first)
        said = entails(question, [pair for one in others for pair in ((first[one], answer), (answer, first[one]))])
        both = [one for one, there, back in zip(others, said[::2], said[1::2], strict=True) if there and back]
        if both:
            merged[own] = both[0]
        else:
            first[own] = answer
    return [merged[own] for own in classes]
