"""The demo's world asks questions whose answer is uncertain, and knows the exact probability of each choice.

Four places have four animals each. An animal is drawn from the prior of its place and leaves two to five clues, each drawn
from its own likelihood table. The question shows the place and the clues and asks which of the place's animals it was.
Bayes' rule then gives the probability of each choice exactly: all tables are small integers, so a posterior is one correctly
rounded division.

Randomness is `random.Random(seed).random()` alone, the one stream Python promises to keep between versions.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from random import Random

# No name is the beginning of another: only then is the probability of a name's tokens the probability of the name.
ANIMALS = (
    "marsh glim",
    "marsh torv",
    "hill pell",
    "hill wask",
    "great marsh unti",
    "great hill arlo",
    "river okka",
    "dwarf river senn",
)

# The animals of each place, in the order in which its questions list them, and P(animal | place) in tenths.
PLACES: Mapping[str, Mapping[str, int]] = {
    "Oru": {"marsh glim": 2, "marsh torv": 3, "great marsh unti": 4, "river okka": 1},
    "Velm": {"hill pell": 3, "marsh torv": 3, "hill wask": 2, "great hill arlo": 2},
    "Ashti": {"dwarf river senn": 2, "hill wask": 4, "river okka": 2, "marsh glim": 2},
    "Kesh": {"great hill arlo": 2, "dwarf river senn": 2, "great marsh unti": 3, "hill pell": 3},
}

# P(clue | animal), in tenths: one table for each kind of clue, in it a row for each of ANIMALS.
CLUES: Mapping[tuple[str, ...], tuple[tuple[int, ...], ...]] = {
    ("red coat", "grey coat", "pale coat", "striped coat"): (
        (5, 1, 1, 3),
        (3, 1, 3, 3),
        (2, 3, 3, 2),
        (5, 3, 1, 1),
        (1, 1, 7, 1),
        (3, 3, 2, 2),
        (3, 3, 1, 3),
        (1, 2, 3, 4),
    ),
    ("low call", "shrill call", "clicking call", "no call"): (
        (4, 4, 1, 1),
        (1, 1, 7, 1),
        (1, 2, 1, 6),
        (5, 3, 1, 1),
        (3, 2, 3, 2),
        (4, 4, 1, 1),
        (1, 4, 1, 4),
        (3, 3, 2, 2),
    ),
    ("round tracks", "forked tracks", "long tracks", "faint tracks"): (
        (3, 3, 1, 3),
        (3, 1, 3, 3),
        (2, 3, 1, 4),
        (2, 3, 3, 2),
        (2, 2, 3, 3),
        (6, 1, 2, 1),
        (3, 2, 2, 3),
        (7, 1, 1, 1),
    ),
    ("at dawn", "at noon", "at dusk", "at night"): (
        (1, 1, 4, 4),
        (2, 1, 1, 6),
        (5, 1, 3, 1),
        (1, 1, 3, 5),
        (4, 2, 1, 3),
        (1, 7, 1, 1),
        (1, 4, 4, 1),
        (4, 2, 3, 1),
    ),
    ("eating nuts", "eating reeds", "eating fish", "eating moss"): (
        (1, 4, 4, 1),
        (1, 4, 4, 1),
        (1, 1, 4, 4),
        (7, 1, 1, 1),
        (4, 4, 1, 1),
        (2, 1, 1, 6),
        (4, 3, 1, 2),
        (1, 3, 4, 2),
    ),
}

MIN_CLUES = 2
LETTERS = "ABCD"
EVALUATION_ROWS = 300  # each task has so many documents
EVALUATION_SEED = 2510


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `gold` is the animal that truly left the clues, hence a draw from `posterior`."""

    query: str
    choices: tuple[str, ...]  # the animals of the place
    gold: int  # index into choices
    posterior: tuple[float, ...]  # P(choice is the true one | query, choices); sums to 1


def posterior(place: str, clues: Collection[str]) -> tuple[float, ...]:
    """Return P(animal | place, clues) for each animal of the place, by Bayes' rule."""
    weights = []
    for name, weight in PLACES[place].items():
        animal = ANIMALS.index(name)
        for values, table in CLUES.items():
            for value, likelihood in zip(values, table[animal], strict=True):
                if value in clues:
                    weight *= likelihood
        weights.append(weight)
    return tuple(weight / sum(weights) for weight in weights)


def draw(rng: Random) -> Question:
    """Draw one question from the world."""
    place = list(PLACES)[_pick(rng, [1] * len(PLACES))]
    choices = tuple(PLACES[place])
    gold = _pick(rng, list(PLACES[place].values()))
    animal = ANIMALS.index(choices[gold])
    shown = _sample(rng, len(CLUES), MIN_CLUES + _pick(rng, [1] * (len(CLUES) - MIN_CLUES + 1)))
    clues = [values[_pick(rng, table[animal])] for kind, (values, table) in enumerate(CLUES.items()) if kind in shown]
    query = f"Seen in {place}: {', '.join(clues)}. Which animal?"
    return Question(query, choices, gold, posterior(place, clues))


def _pick(rng: Random, weights: Sequence[int]) -> int:
    """Return an index with probability proportional to its weight."""
    left = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return len(weights) - 1  # unreachable but for the rounding of the product above


def _sample(rng: Random, population: int, count: int) -> list[int]:
    """Return `count` different indices below `population`."""
    return sorted(range(population), key=lambda _: rng.random())[:count]


def evaluation() -> dict[str, list[Question]]:
    """Return the questions of both tasks: no query occurs twice, in one task or across the two.

    Repeats are refused by their query alone, whatever the true animal: the gold answers stay draws from the posterior.
    """
    seen: dict[str, Question] = {}
    rng = Random(EVALUATION_SEED)
    while len(seen) < 2 * EVALUATION_ROWS:
        question = draw(rng)
        seen.setdefault(question.query, question)
    questions = iter(seen.values())
    return {task: list(islice(questions, EVALUATION_ROWS)) for task in ("letters", "cloze")}


def training(rng: Random) -> Iterator[Question]:
    """Yield questions without end, none with the query of an evaluation question."""
    held_out = {question.query for questions in evaluation().values() for question in questions}
    while True:
        question = draw(rng)
        if question.query not in held_out:
            yield question


def render(task: str, question: Question) -> tuple[str, list[str]]:
    """Return the context and the continuation of each choice, as evaluation harnesses write them."""
    if task == "cloze":
        return f"{question.query}\nAnswer:", [f" {choice}" for choice in question.choices]
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.query}{options}\nAnswer:", [f" {letter}" for letter in LETTERS]


def to_jsonl(questions: Sequence[Question]) -> str:
    """Return one JSON object a line; floats are written so that they read back equal."""
    return "".join(json.dumps(asdict(question)) + "\n" for question in questions)
