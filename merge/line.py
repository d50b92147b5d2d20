"""A line is the way that a sweep takes from base to aligned; the plain one moves every tensor straight and alike."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from merge.methods import METHODS

VOCABULARIES = ("strict", "shared")


@dataclass(frozen=True, slots=True)
class Line:
    """The line is part of a sweep's identity, and every rank has the same one."""

    method: str = "linear"
    """The name of a module of `merge.methods`, which says how θ goes from base to aligned."""
    lam_map: str = ""
    """The weights on λ by module, see `merge.lam_map`; an empty map gives weight 1 to all."""
    vocab: str = "strict"
    """`strict` refuses parents in which a token id stands for different strings. With `shared` the rows of such ids in
    embedding and LM head are aligned's at every λ, and θ(λ) has aligned's vocabulary and shapes."""

    @property
    def has_aligned_shapes(self) -> bool:
        """Tell whether θ(λ) has aligned's architecture and is read with aligned's tokenizer instead of base's."""
        return self.vocab == "shared"

    def two_parents_only(self) -> list[str]:
        """Return the reasons, if any, why this line cannot be taken over several aligned checkpoints."""
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
    """Return one line for each thing that is wrong with the line a user asked for, as far as it shows without the pair."""
    given = (("method", line.method, tuple(METHODS)), ("vocab", line.vocab, VOCABULARIES))
    return [f"--{name} is {value!r}: use {', '.join(known)}" for name, value, known in given if value not in known]
