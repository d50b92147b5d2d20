"""This module has worlds in which the truth about every λ is known exactly: the demo's, and synthetic ones.

A world is a finite population of questions with the true probability of each choice and a model's log-probabilities at each
λ. A sample draws questions with replacement and their right choices from the true probabilities. So the true accuracy, NLL
and ECE at a λ are sums over the population, without any error.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from calibration.arrays import BINS, Floats, Ints
from calibration.metrics.binned import Layout, bin_of
from calibration.metrics.predictions import predictions
from calibration.metrics.smooth_ece import add_residuals, smooth_ece

GRID = tuple(f"{point / 10:g}" for point in range(16))


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth holds the true values [L] at L λs."""

    accuracy: Floats
    nll: Floats  # nats
    ece_width: Floats
    ece_mass: Floats
    ece_classwise: Floats
    ece_squared: Floats
    smece: Floats
    brier_reliability: Floats
    brier_resolution: Floats


@dataclass(frozen=True, slots=True)
class World:
    """A world is a population of P questions with C choices at L λs."""

    name: str
    grid: tuple[str, ...]
    logits: Floats  # [L, P, C] log-probabilities, up to a constant for each question
    posterior: Floats  # [P, C] the true probability of each choice
    truth: Truth

    def draw(self, rng: np.random.Generator, documents: int) -> tuple[Ints, Ints]:
        """Return which questions a sample has [documents], and their right choices."""
        question = rng.integers(len(self.posterior), size=documents)
        below = self.posterior[question].cumsum(axis=1)
        gold = (rng.uniform(size=documents)[:, None] >= below[:, :-1]).sum(axis=1)
        return question, gold


def world(name: str, grid: tuple[str, ...], logits: Floats, posterior: Floats) -> World:
    """Return a world with its truths."""
    along = [_truths(at_lambda, posterior) for at_lambda in logits]
    return World(
        name, grid, logits, posterior, Truth(**{key: np.array([one[key] for one in along]) for key in along[0]})
    )


def _truths(logits: Floats, posterior: Floats) -> dict[str, float]:
    """Restate each definition for a population whose answers are not drawn but known by their probabilities."""
    rows = np.arange(len(posterior))
    made = predictions(logits, np.zeros(len(rows), np.int64))
    right = posterior[rows, made.choice]
    share = np.bincount(bin_of(made.confidence), minlength=BINS) / len(rows)
    gaps = np.bincount(bin_of(made.confidence), made.confidence - right, BINS) / len(rows)
    parts = np.array_split(np.argsort(made.confidence, kind="stable"), BINS)
    layout = Layout(len(rows))
    add_residuals(layout, made.confidence, right)
    classwise, reliability, resolution = [], 0.0, 0.0
    for c in range(posterior.shape[1]):
        p, y = made.probability[:, c], posterior[:, c]
        place = bin_of(p)
        count = np.bincount(place, minlength=BINS) / len(rows)
        sure, gold = (np.bincount(place, of, BINS) / len(rows) for of in (p, y))
        filled = count > 0
        classwise.append(np.abs(sure - gold).sum())
        reliability += ((sure - gold)[filled] ** 2 / count[filled]).sum()
        resolution += (count[filled] * (gold[filled] / count[filled] - y.mean()) ** 2).sum()
    filled = share > 0
    return {
        "accuracy": right.mean(),
        "nll": -(posterior * np.log(made.probability)).sum(axis=1).mean(),
        "ece_width": np.abs(gaps).sum(),
        "ece_mass": sum(abs((made.confidence - right)[part].sum()) for part in parts) / len(rows),
        "ece_classwise": float(np.mean(classwise)),
        "ece_squared": (gaps[filled] ** 2 / share[filled]).sum(),
        "smece": smooth_ece(layout.matrix.sums(np.ones((len(rows), 1))), np.array([float(len(rows))]))[0],
        "brier_reliability": reliability,
        "brier_resolution": resolution,
    }


def surer(factors: Sequence[float], questions: int = 20_000, seed: int = 0) -> World:
    """Return a world of a model that knows the truth, and is as sure of it as it should be, times a factor.

    Its λs are the places of the factors. At a factor of 1 the true ECE is exactly 0.
    """
    truth = np.random.default_rng([seed, 15]).normal(0, 1.2, (questions, 4))
    posterior = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    logits = np.array(factors)[:, None, None] * truth
    return world("surer", tuple(str(place) for place in range(len(factors))), logits, posterior)


def synthetic(name: str, questions: int = 20_000, seed: int = 0) -> World:
    """Return a synthetic world.

    A model between the parents knows a share of what there is to know, and is surer or less sure than that by a factor.

    flat: it knows the same everywhere, and grows over-confident from λ = 0.3 on.
    peak: it knows most at λ = 0.6, where it is calibrated.
    rise: it knows more and grows over-confident with λ, all the way.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    lam = np.array([float(point) for point in GRID])
    truth = rng.normal(0, 1.5, (questions, 4))
    noise, drift = rng.normal(0, 1.5, (2, questions, 4))
    knows, factor = {
        "flat": (np.full_like(lam, 0.8), np.exp(1.0 * (lam - 0.3))),
        "peak": (0.9 - 0.35 * (lam - 0.6) ** 2, np.exp(1.2 * (lam - 0.6))),
        "rise": (0.6 + 0.12 * lam, np.exp(0.8 * (lam - 0.2))),
    }[name]
    posterior = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    angle = np.pi / 4 * lam[:, None, None]
    doubt = np.cos(angle) * noise + np.sin(angle) * drift
    # The best guess at `truth` from k² truth + k √(1 − k²) noise is the sum itself, as the variances are the same.
    k = knows[:, None, None]
    logits = factor[:, None, None] * (k * k * truth + k * np.sqrt(1 - k * k) * doubt)
    return world(name, GRID, logits, posterior)


def demo(task: str, questions: int, grid: tuple[str, ...] = GRID, seed: int = 1) -> World:
    """Return fresh questions of the demo's world, scored by transformers with the demo's pair at each λ."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lambdasweep.demo import ALIGNED, BASE
    from lambdasweep.demo import world as animals

    drawn = [animals.draw(rng) for rng in [Random(seed)] for _ in range(questions)]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base, aligned = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (BASE, ALIGNED))
    ends = [{name: value.clone() for name, value in model.state_dict().items()} for model in (base, aligned)]
    rows = _requests(task, drawn, tokenizer)
    logits = np.empty((len(grid), questions, 4))
    for at, lam in enumerate(grid):
        base.load_state_dict({name: torch.lerp(one, ends[1][name], float(lam)) for name, one in ends[0].items()})
        logits[at] = _scores(base, rows, questions)
    posterior = np.array([question.posterior for question in drawn])
    return world(task, grid, logits, posterior)


@dataclass(frozen=True, slots=True)
class _Request:
    question: int
    choices: tuple[int, ...]  # the choices that one prompt scores: all of them where each is one token
    tokens: list[int]  # the context and the continuation without its last token
    targets: list[list[int]]  # one entry for each choice: the tokens of its continuation


def _requests(task: str, drawn: list[Any], tokenizer: Any) -> list[_Request]:
    from lambdasweep.demo.world import render

    rows = []
    for number, question in enumerate(drawn):
        context, continuations = render(task, question)
        start = len(tokenizer(context)["input_ids"])
        whole = [tokenizer(context + one)["input_ids"] for one in continuations]
        if all(len(one) == start + 1 for one in whole):
            rows.append(_Request(number, tuple(range(4)), whole[0][:-1], [one[start:] for one in whole]))
        else:
            rows += [_Request(number, (i,), one[:-1], [one[start:]]) for i, one in enumerate(whole)]
    return sorted(rows, key=lambda row: (len(row.tokens), len(row.targets[0])))


def _scores(model: Any, rows: list[_Request], questions: int) -> Floats:
    """Return the log-probability of each choice [questions, 4]."""
    import torch

    found = np.empty((questions, 4))
    with torch.inference_mode():
        for _, same in itertools.groupby(rows, key=lambda row: (len(row.tokens), len(row.targets[0]))):
            for some in _batches(list(same), 512):
                length = len(some[0].targets[0])
                logits = model(torch.tensor([row.tokens for row in some]), logits_to_keep=length).logits.log_softmax(-1)
                for row, of in zip(some, logits, strict=True):
                    for choice, target in zip(row.choices, row.targets, strict=True):
                        found[row.question, choice] = float(of.gather(-1, torch.tensor(target)[:, None]).sum())
    return found


def _batches(rows: list[_Request], size: int) -> Iterator[list[_Request]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))
