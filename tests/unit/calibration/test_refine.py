"""λs that are added to a coarse grid find what a dense grid finds, and they are a function of the tables alone."""

import dataclasses
import itertools
from decimal import Decimal

import numpy as np
import pytest

from calibration import analyse
from calibration.frontier.curve import Curve, Track
from calibration.frontier.frontier import frontier
from calibration.frontier.lambda_star import choose
from calibration.frontier.refine import ROUND, suggest
from calibration.frontier.running_curve import answer_curve
from calibration.metrics.predictions import predictions
from contract.grid import canonical, parse_grid
from contract.records import read_plan, read_sweep
from contract.rundir import RunDir
from tests.support.curves import curve, estimates
from tests.support.tables import add_quarantine, add_scores, add_task

GRID = ("0", "0.25", "0.5", "0.75", "1")
V = [0.30, 0.20, 0.10, 0.15, 0.25]  # the error is lowest between 0.5 and 0.75


def test_the_gap_into_which_the_nll_falls_is_split_first():
    assert suggest(curve(GRID, [0.6] * 5, V), 1).lambdas == ("0.6",)
    assert suggest(curve(GRID, [0.6] * 5, V[::-1]), 1).lambdas == ("0.4",)
    # 0.75 has a lower NLL and is not accurate enough: where that is lost, λ* of a denser grid is.
    assert suggest(curve(GRID, [0.6, 0.6, 0.6, 0.2, 0.2], [0.3, 0.2, 0.1, 0.05, 0.01]), 1).lambdas == ("0.6",)
    # With a margin that wide it is accurate enough, and the best λ lies beyond it.
    assert suggest(curve(GRID, [0.6, 0.6, 0.6, 0.2, 0.2], [0.3, 0.2, 0.1, 0.05, 0.01]), 1, margin=0.4).lambdas == (
        "0.9",
    )
    # At an end there is one gap only.
    assert suggest(curve(GRID, [0.6] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]), 1).lambdas == ("0.1",)
    assert suggest(curve(GRID, [0.6] * 5, [0.5, 0.4, 0.3, 0.2, 0.1]), 1).lambdas == ("0.9",)


def test_a_gap_is_split_at_the_roundest_number_of_its_middle_half():
    for low, high, middle in [
        ("0.1", "0.2", "0.15"),
        ("0", "1", "0.5"),
        ("0.4", "0.6", "0.5"),
        ("-1", "1", "0"),
        # fmt: skip.
        ("0.25", "0.4", "0.3"),
        ("0.000001", "0.000004", "0.000002"),
        ("10", "30", "20"),
    ]:
        assert suggest(curve((low, high), [0.6, 0.6], [0.1, 0.2]), 1).lambdas == (middle,)
    assert suggest(curve(("0", "0.000001"), [0.6, 0.6], [0.1, 0.2]), 1).lambdas == ()  # no λ lies between


def test_what_is_there_is_never_suggested_and_all_are_canonical():
    made = curve(GRID, [0.6] * 5, V, noise=0.05, shared=0.1)
    taken = {*GRID, "0.6"}
    found = suggest(made, 6, taken).lambdas
    assert found
    assert not taken & set(found)
    assert list(found) == sorted({canonical(lam) for lam in found}, key=Decimal)
    assert found == suggest(made, 6, taken).lambdas


def test_no_gap_is_split_in_which_the_documents_cannot_tell_lambdas_apart():
    flat = curve(parse_grid("0:1:0.05"), [0.6] * 21, [0.1] * 21, noise=0.02)
    # λ* is anywhere: its standard error is that of a uniform distribution, 0.3.
    assert suggest(flat, 8).lambdas == ()
    assert suggest(flat, 8).resolution == pytest.approx(0.3 / 4, abs=0.01)
    assert suggest(curve(("0",), [0.6], [0.1]), 3).lambdas == ()


# Against a dense grid, on documents whose scores move smoothly along λ


SHAPES = {  # skill and sharpness by λ
    "sharper only": lambda lam: (1.2, 0.8 + 1.6 * lam),
    "skill peaks": lambda lam: (1.3 - 1.2 * (lam - 0.6) ** 2, 0.7 + 1.5 * lam),
    "skill saturates": lambda lam: (0.4 + 1.2 * (1 - np.exp(-3 * lam)), 0.6 + 1.2 * lam),
    "both fall": lambda lam: (1.4 - 0.5 * lam, 2.2 - 1.0 * lam),
    "skill breaks off": lambda lam: (1.0 + 0.4 * lam - 0.5 * max(lam - 0.9, 0) ** 2, 0.5 + 0.6 * lam**2),
}


class World:
    """These are documents of four choices, with their metrics at any λ in shared resamples."""

    def __init__(self, shape, documents, seed, resamples=200):
        rng = np.random.default_rng([seed, documents])
        self._shape, self._gold = SHAPES[shape], rng.integers(4, size=documents)
        self._skill = rng.normal(1, 0.9, documents)
        self._noise, self._drift = rng.normal(size=(documents, 4)), 0.5 * rng.normal(size=(documents, 4))
        drawn = rng.multinomial(documents, np.full(documents, 1 / documents), size=resamples)
        self._weights = np.vstack([np.ones(documents), drawn]).T
        self._known = {}

    def _at(self, lam):
        if lam not in self._known:
            skill, sharpness = self._shape(float(lam))
            logits = self._noise + float(lam) * self._drift
            logits[np.arange(len(logits)), self._gold] += skill * self._skill
            made = predictions(sharpness * logits, self._gold)
            self._known[lam] = np.stack([made.correct, made.nll]) @ self._weights / len(logits)
        return self._known[lam]

    def curve(self, lambdas):
        both = (np.array(part) for part in zip(*map(self._at, lambdas), strict=True))
        accuracy, nll = (estimates(of[:, 0], of[:, 1:], len(self._gold)) for of in both)
        return Curve("quiz", "ece_width15", "sum", tuple(lambdas), {"all": Track(accuracy, nll, nll)})


def refined(world, coarse, most):
    """Return λ* and the λs of a coarse grid that up to `most` λs were added to, as a sweep does it."""
    lambdas = coarse
    while count := min(ROUND, most - (len(lambdas) - len(coarse))):
        found = suggest(world.curve(lambdas), count, lambdas).lambdas
        if not found:
            break
        lambdas = tuple(sorted({*lambdas, *found}, key=Decimal))
    return lambdas[choose(world.curve(lambdas).tracks["all"])], lambdas


OTHERS = 1000  # these seeds give other documents
GRIDS = [("0:1.5:0.05", "0:1.5:0.25", 3), ("0:1.5:0.02", "0:1.5:0.1", 9)]


def simulate(seeds, resamples=200):
    """Return of every shape, grid, number of documents and seed: how far λ* is from the dense grid's, in dense steps; how
    far that is from the dense grid's on as many other documents; the share of the units; and what the NLL of λ* is above
    that of the dense λ*."""
    rows = []
    for shape, documents, seed in itertools.product(SHAPES, (300, 2000), range(seeds)):
        world, others = (World(shape, documents, one, resamples) for one in (seed, seed + OTHERS))
        for dense, coarse, most in GRIDS:
            grid = parse_grid(dense)
            whole = world.curve(grid)
            star = grid[choose(whole.tracks["all"])]
            lam, used = refined(world, parse_grid(coarse), most)
            other = grid[choose(others.curve(grid).tracks["all"])]
            off, noise = (abs(Decimal(one) - Decimal(star)) / Decimal(dense.split(":")[2]) for one in (lam, other))
            excess = world.curve([lam]).tracks["all"].nll[0].value - whole.tracks["all"].nll[grid.index(star)].value
            rows.append((shape, documents, dense, float(off), float(noise), len(used) / len(grid), excess))
    return rows


@pytest.mark.slow
def test_a_coarse_grid_and_refinement_find_the_lambda_of_a_dense_grid():
    rows = simulate(seeds=2, resamples=80)
    off, noise, share, excess = (np.array(column) for column in list(zip(*rows, strict=True))[3:])
    assert share.max() <= 1 / 3
    # The documents decide which of a dense grid's λs is λ*, and refining adds little to how far that varies.
    assert np.mean(off <= 1) > np.mean(noise <= 1) + 0.1
    assert np.mean(off <= 2) > np.mean(noise <= 2) + 0.1
    assert np.quantile(excess, 0.9) <= 0.01  # where it finds another λ, that is hardly a worse one


# This is the curve that is refined


@pytest.fixture
def quiz(tmp_path):
    run = RunDir(tmp_path / "run")
    rng = np.random.default_rng(0)
    for task, count in (("quiz", 21), ("other", 12)):
        add_task(run, task, [3] * count, ("0", "0.5", "1"), gold=[int(gold) for gold in rng.integers(3, size=count)])
        for lam in ("0", "0.5"):
            add_scores(
                run, task, lam, {r: [-abs(float(x))] * (1 + r % 3) for r, x in enumerate(rng.normal(-2, 1, 3 * count))}
            )
    add_quarantine(run, "quiz", "1", list(range(63)))
    add_scores(run, "other", "1", {0: [-1.0]})
    return run


@pytest.mark.slow
def test_it_is_the_curve_of_the_report(quiz):
    analysis = analyse.analyse(quiz, resamples=60)
    for tasks in (["quiz"], ["other"], ["quiz", "other"]):
        found = answer_curve(quiz, tasks, analysis.sweep, analysis.plan, resamples=60)
        every = (*analysis.found.tasks, *analysis.found.pools)
        expected = next(one for one in every if one.task == (tasks[0] if len(tasks) == 1 else "all tasks"))
        again = frontier(dataclasses.replace(found, macro={}))
        assert again.chosen == expected.chosen
        assert again.held_out.lam == expected.held_out.lam
        for one, other in zip(again.points, expected.points, strict=True):
            for name in ("accuracy", "nll", "error"):
                same = [
                    getattr(getattr(point, name), end) for point in (one, other) for end in ("value", "low", "high")
                ]
                assert same[:3] == pytest.approx(same[3:], abs=1e-12)


def test_without_choices_there_is_nothing_to_refine(tmp_path):
    run = RunDir(tmp_path / "run")
    add_task(run, "words", [1] * 4, GRID)
    add_scores(run, "words", "0", {r: [-1.0] for r in range(4)})
    add_task(run, "quiz", [2] * 4, GRID)
    assert answer_curve(run, ["words", "quiz"], read_sweep(run), read_plan(run), resamples=20) is None
