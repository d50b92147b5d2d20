"""The way a sweep takes from base to aligned, where it is not the straight line through every tensor alike."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from merge.methods import METHODS

VOCABULARIES = ("strict", "shared")


@dataclass(frozen=True, slots=True)
class Line:
    """Part of a sweep's identity; the same in every rank."""

    method: str = "linear"
    """One of `merge.methods`."""
    lam_map: str = ""
    """Weights on λ by module, see `merge.lam_map`; empty: 1 everywhere."""
    vocab: str = "strict"
    """strict: a token id that stands for different strings in the parents is refused. shared: its rows of embedding and LM
    head are aligned's at every λ, and θ(λ) has aligned's vocabulary and shapes."""

    @property
    def has_aligned_shapes(self) -> bool:
        """θ(λ) goes into the architecture of aligned, and is read with its tokenizer, not base's."""
        return self.vocab == "shared"

    def two_parents_only(self) -> list[str]:
        """Return why this line cannot be taken where there are several aligned checkpoints."""
        problems = []
        method = METHODS.get(self.method)
        if method and method.one_only:
            problems.append(f"--method {method.name} takes one aligned checkpoint: {method.one_only}")
        if self.vocab == "shared":
            problems.append("--vocab shared takes one aligned checkpoint: several have no rows in common to take")
        return problems

    def __str__(self) -> str:
        return ", ".join([self.method, *([f"λ × {self.lam_map}"] if self.lam_map else []), f"{self.vocab} vocabulary"])

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Line":
        return Line(**value)


STRAIGHT = Line()


def check_line(line: Line) -> list[str]:
    """Return what is wrong with what a user asked for, as far as that can be told without the pair."""
    given = (("method", line.method, tuple(METHODS)), ("vocab", line.vocab, VOCABULARIES))
    return [f"--{name} is {value!r}: use {', '.join(known)}" for name, value, known in given if value not in known]
