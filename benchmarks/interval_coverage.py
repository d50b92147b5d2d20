"""This counts how often intervals hold the truth and what λ* costs, in worlds whose truth is known, and by simpler rules.

    python benchmarks/interval_coverage.py [--quick | --tiny] [--seed N]

Samples are drawn anew from the demo's world, scored by transformers with the demo's pair, and from synthetic worlds
[benchmarks/worlds.py]. They go through the code of `lambdasweep report`, on every core. "Before" are simpler rules: the
basic bootstrap interval 2 · value − percentiles for errors that noise pushes upwards, the mean of the tasks' ECEs for
several tasks, and for λ* the lowest ECE, on one half of the documents, among λs within one standard error of the best
accuracy.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import scipy
from worlds import Truth, World, demo, surer, synthetic

from calibration.frontier.curve import Curve, Track, stacked
from calibration.frontier.frontier import frontier
from calibration.frontier.lambda_star import choose
from calibration.metrics.binned import Layout, add_reliability, means, reliability_metrics
from calibration.metrics.choice_tasks import Estimates, choice_estimates
from calibration.metrics.predictions import predictions
from calibration.scores.per_document import CONFIDENCES, ChoiceScores, LeftOut
from calibration.scores.per_token import TokenScores
from calibration.scores.pool import pooled_resamples
from calibration.task_at_lambda import cores
from calibration.uncertainty.gaps import of_gaps
from calibration.uncertainty.intervals import Estimate, interval
from calibration.uncertainty.resample import SPLITS, Resamples, draw, ones

ECE = "ece_width15"
FACTORS = (1.0, 1.03, 1.06, 1.15, 1.3, 1.6, 2.5, 5.0)  # the true ECE is from 0 to 0.3
KIN = (0, 3, 6)  # the places of the factors at which the kin of ECE are looked at
PAIRS = ((1.0, 1.06), (1.06, 1.3), (1.3, 1.6), (1.0, 2.5), (2.5, 5.0))
NO_TOKENS = TokenScores(np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_))
OF_TASK = ("ece_width", "ece_mass", "ece_classwise", "smece", "brier_reliability", "brier_resolution", "ece_squared")


@dataclass(frozen=True, slots=True)
class Size:
    """The size says how much is simulated."""

    trials: int  # the trials of each cell
    resamples: int
    documents: tuple[int, ...]  # the numbers of documents of the cells of ECE
    questions: int  # the questions of the demo's world; 0 leaves it out
    tasks: int  # the tasks of the pool
    worlds: tuple[str, ...]  # the worlds that λ* is chosen in
    sizes: tuple[int, ...]  # the numbers of documents that λ* is chosen on


FULL = Size(1000, 500, (100, 300, 1000), 6000, 57, ("letters", "cloze", "flat", "peak", "rise"), (300, 1000, 4000))
QUICK = Size(400, 300, (100, 300, 1000), 1200, 57, ("letters", "peak", "rise"), (300,))
TINY = Size(10, 60, (60, 100), 0, 3, ("peak", "rise"), (60, 80))


class Shares:
    """Counts how often something holds, and averages values."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], list[float]] = {}

    def add(self, held: bool, *key: str) -> None:
        self._held.setdefault(key, []).append(bool(held))

    def record(self, value: float, *key: str) -> None:
        self._held.setdefault(key, []).append(value)

    def of(self, *key: str) -> float:
        return float(np.mean(self._held[key]))

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._held

    def take(self, other: "Shares") -> None:
        """Add what another has counted of other keys."""
        self._held |= other._held

    def under(self, *start: str) -> dict[tuple[str, ...], float]:
        return {key: self.of(*key) for key in self._held if key[: len(start)] == start}


def scores_of(world: World, at: int, question: np.ndarray, gold: np.ndarray) -> ChoiceScores:
    logits = world.logits[at, question]
    everything = dict.fromkeys(CONFIDENCES, logits)
    return ChoiceScores(np.arange(len(gold)), np.full(len(gold), logits.shape[1]), gold, everything, LeftOut(0, 0))


def estimates(
    world: World, at: int, sample: tuple[np.ndarray, np.ndarray], drawn: Resamples, whole: bool = False
) -> Estimates:
    return choice_estimates(
        scores_of(world, at, *sample), NO_TOKENS if whole else None, drawn, {}, None, CONFIDENCES[:1]
    )


def curve_of(world: World, sample: tuple[np.ndarray, np.ndarray], drawn: Resamples, places: Sequence[int]) -> Curve:
    """Return accuracy, NLL and ECE at some λs, from the sums of the report's own functions and of nothing else."""
    order, runs = drawn.halves_first(np.arange(len(sample[1])))
    weights = np.hstack(list(drawn.chunks(order)))
    found: dict[str, list[tuple[Estimate, ...]]] = {split: [] for split in SPLITS}
    for at in places:
        made = predictions(world.logits[at, sample[0]][order], sample[1][order])
        layout = Layout(len(order))
        add_reliability(layout, made)
        layout.add("correct", made.correct.astype(np.float64))
        layout.add("nll", made.nll)
        sums = [
            {half: layout.matrix.sums(some[runs[half]], runs[half]) for half in ("select", "report")}
            for some in (ones(len(order)), weights)
        ]
        for split in SPLITS:
            own, resampled = (of["select"] + of["report"] if split == "all" else of[split] for of in sums)
            n = layout.of(own, "bin_count").sum()
            parts = [means(layout, some, ["correct", "nll"], np.full(some.shape[1], n)) for some in (own, resampled)]
            pair = [Estimate(float(parts[0][name][0]), parts[1][name], int(n)) for name in ("correct", "nll")]
            gaps = [reliability_metrics(layout, some)["ece_width"] for some in (own, resampled)]
            found[split].append((*pair, of_gaps(gaps[0][:, 0], gaps[1], int(n))))
    tracks = {split: Track(*zip(*rows, strict=True)) for split, rows in found.items()}
    lambdas = tuple(world.grid[at] for at in places)
    return Curve("quiz", ECE, CONFIDENCES[0], lambdas, tracks, {"base": "0", "aligned": "1"})


def key_of(metric: str, split: str = "all") -> tuple[str, str, str]:
    return metric, CONFIDENCES[0], split


def basic(estimate: Estimate, cut: bool) -> tuple[float, float]:
    """Return the interval before: 2 · value − percentiles."""
    low, high = np.quantile(estimate.resampled, [0.025, 0.975])
    ends = 2 * estimate.value - high, 2 * estimate.value - low
    return (max(ends[0], 0.0), max(ends[1], 0.0)) if cut else ends


def hold(shares: Shares, estimate: Estimate, metric: str, truth: float, *cell: str) -> None:
    """Count whether the intervals now and before hold the truth and the value."""
    found = interval(estimate, metric)
    if found is None:
        return
    before = basic(estimate, "_vs_" not in metric)
    shares.add(found.low <= truth <= found.high, "now", *cell)
    shares.add(before[0] <= truth <= before[1], "before", *cell)
    shares.add(found.low <= estimate.value <= found.high, "contains", "now", *cell)
    shares.add(before[0] <= estimate.value <= before[1], "contains", "before", *cell)


def samples(
    world: World, documents: int, size: Size, seed: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Resamples]]:
    for trial in range(size.trials):
        rng = np.random.default_rng([seed, trial, documents])
        yield world.draw(rng, documents), draw("quiz", documents, size.resamples, seed=trial + 1_000_000 * seed)


def ece_cells(size: Size, seed: int) -> Shares:
    """Measure ECE and its kin, and differences of ECE, at every true ECE and number of documents."""
    shares, world = Shares(), surer(FACTORS)
    places = range(len(FACTORS))
    for documents in size.documents:
        for trial, (sample, drawn) in enumerate(samples(world, documents, size, seed)):
            found = curve_of(world, sample, drawn, places).tracks["all"].error
            for at, estimate in enumerate(found):
                truth = world.truth.ece_width[at]
                hold(shares, estimate, ECE, truth, "ece", f"{truth:.3f}", str(documents))
            for one, other in PAIRS:
                a, b = (FACTORS.index(factor) for factor in (one, other))
                difference = found[b].minus(found[a])
                truths = world.truth.ece_width[a], world.truth.ece_width[b]
                cell = f"{truths[0]:.3f} to {truths[1]:.3f}", str(documents)
                hold(shares, difference, f"{ECE}_vs_base", truths[1] - truths[0], "difference", *cell)
            for at in KIN if trial < size.trials // 10 else ():
                of = estimates(world, at, sample, drawn, whole=True)
                for name in OF_TASK:
                    metric = name if name == "smece" or name.startswith("brier") else f"{name}15"
                    cell = f"{world.truth.ece_width[at]:.3f}", str(documents)
                    hold(shares, of[key_of(metric)], metric, getattr(world.truth, name)[at], metric, *cell)
    return shares


def pooled(world: World, at: int, size: Size, seed: int, documents: int = 100) -> Shares:
    """Measure, for many small tasks of one world, the ECE of the pool, and as before the mean of the tasks' ECEs."""
    shares = Shares()
    aligned = world.grid.index("1")
    truth, theirs = world.truth.ece_width[at], world.truth.ece_width[aligned]
    drawn = [draw(f"task {task}", documents, size.resamples) for task in range(size.tasks)]
    for trial in range(max(size.trials // 4, 2)):
        rng = np.random.default_rng([seed, trial, 57])
        parts = [world.draw(rng, documents) for _ in range(size.tasks)]
        question, gold = (np.concatenate(part) for part in zip(*parts, strict=True))
        pool = curve_of(world, (question, gold), pooled_resamples(drawn), (at, aligned)).tracks["all"].error
        hold(shares, pool[0], ECE, truth, "pool")
        hold(shares, pool[0].minus(pool[1]), f"{ECE}_vs_aligned", truth - theirs, "pool difference")
        each = [
            curve_of(world, part, one, (at, aligned)).tracks["all"].error
            for part, one in zip(parts, drawn, strict=True)
        ]
        mean, other = (_mean([pair[place] for pair in each]) for place in (0, 1))
        for estimate, value, name in ((mean, truth, ""), (mean.minus(other), truth - theirs, " difference")):
            low, high = basic(estimate, cut=not name)
            shares.add(low <= value <= high, "before", f"mean of tasks{name}")
            shares.record(estimate.value, "value", f"mean of tasks{name}")
        shares.record(pool[0].value, "value", "pool")
        shares.record(pool[0].minus(pool[1]).value, "value", "pool difference")
    return shares


def _mean(several: Sequence[Estimate]) -> Estimate:
    drawn = np.mean([one.resampled for one in several], axis=0)
    return Estimate(float(np.mean([one.value for one in several])), drawn, len(several))


def rule_before(curve: Curve) -> int:
    """Return the place of λ* by the rule before."""
    track = curve.tracks["select"]
    (accuracy, drawn), (error, _) = stacked(track.accuracy, track.error)
    best = max(range(len(accuracy)), key=lambda i: (accuracy[i], -error[i]))
    spread = (drawn - drawn[best]).std(axis=1, ddof=1)
    close = accuracy[best] - accuracy <= spread + 1e-12
    return int(np.argmin(np.where(close, error, np.inf)))


@dataclass(slots=True)
class Rule:
    """This collects what a rule of λ* chose in many samples."""

    places: list[int]
    regrets: list[tuple[float, float]]  # by how much the true NLL and ECE are above the lowest of the grid

    def add(self, place: int, truth: Truth) -> None:
        self.places.append(place)
        self.regrets.append((truth.nll[place] - truth.nll.min(), truth.ece_width[place] - truth.ece_width.min()))

    def mean_regrets_and_spread(self, grid: Sequence[str]) -> tuple[float, float, float]:
        nll, ece = np.mean(self.regrets, axis=0)
        return float(nll), float(ece), float(np.std([float(grid[place]) for place in self.places]))


def stars(
    world: World, documents: int, size: Size, seed: int
) -> tuple[dict[str, Rule], Shares, dict[str, list[float]]]:
    """Choose λ* by both rules, and measure how honest its numbers and the tests against the parents are."""
    rules, shares = {"now": Rule([], []), "before": Rule([], [])}, Shares()
    off: dict[str, list[float]] = {"accuracy": [], "nll": [], "error": []}
    truth = world.truth
    of = {"accuracy": truth.accuracy, "nll": truth.nll, "error": truth.ece_width}
    for sample, drawn in samples(world, documents, size, seed):
        curve = curve_of(world, sample, drawn, range(len(world.grid)))
        rules["before"].add(rule_before(curve), truth)
        place = choose(curve.tracks["all"])
        rules["now"].add(place, truth)
        found = frontier(curve)
        point = found.points[place]
        for name in off:
            value = getattr(point, name)
            off[name].append(value.value - of[name][place])
            shares.add(value.low <= of[name][place] <= value.high, "star", name)
        for parent, gain in point.gains.items():
            other = curve.places[parent]
            for name in off:
                value = getattr(gain, name)
                shares.add(value.low <= of[name][place] - of[name][other] <= value.high, "gain", parent, name)
        tested = curve.lambdas.index(found.held_out.lam)
        for test in found.held_out.tests:
            sign = 1 if test.metric == "accuracy" else -1
            better = sign * (of[test.metric][tested] - of[test.metric][curve.places[test.parent]]) > 1e-9
            shares.add(test.p <= 0.05, "power" if better else "level", test.parent, test.metric)
        if found.claim:
            shares.add(found.claim.verdict == "yes", "claim", "yes")
            shares.add(found.claim.verdict == "no", "claim", "no")
    return rules, shares, off


def table(title: str, rows: Iterable[Sequence[object]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(f"{one:.3f}" if isinstance(one, float) else str(one) for one in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, three worlds")
    parser.add_argument(
        "--tiny", action="store_true", help="a few samples without the demo's world, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    size = TINY if given.tiny else QUICK if given.quick else FULL
    print(
        f"{platform.platform()}, Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}"
    )
    print(f"{size.trials} samples of each cell, {size.resamples} resamples of each sample")
    demos = {
        name: demo(name, size.questions) for name in ("letters", "cloze") if size.questions and name in size.worlds
    }
    worlds = [demos[name] if name in demos else synthetic(name) for name in size.worlds]

    with ProcessPoolExecutor(cores()) as processes:
        # The longest come first.
        chosen = {
            (world.name, documents): processes.submit(stars, world, documents, size, given.seed)
            for documents in sorted(size.sizes, reverse=True)
            for world in worlds
        }
        pool = processes.submit(pooled, worlds[0], 1, size, given.seed)
        parts = [
            processes.submit(ece_cells, replace(size, documents=(documents,)), given.seed)
            for documents in reversed(size.documents)
        ]
    cells = Shares()
    for part in reversed(parts):
        cells.take(part.result())
    table(
        "coverage of 95 % intervals: metric, true ECE, documents, now, before, before holds its own value",
        [
            (*key[1:], share, cells.of("before", *key[1:]), cells.of("contains", "before", *key[1:]))
            for key, share in cells.under("now").items()
        ],
    )
    many = pool.result()
    truth = worlds[0].truth.ece_width[1]
    table(
        f"{size.tasks} tasks of 100 documents of {worlds[0].name}, true ECE {truth:.3f}: mean value, coverage now, before",
        [
            (
                *key[1:],
                value,
                *(many.of(when, *key[1:]) if (when, *key[1:]) in many else "–" for when in ("now", "before")),
            )
            for key, value in many.under("value").items()
        ],
    )
    ratios: list[tuple[float, float]] = []
    gains: list[float] = []
    for world in worlds:
        for documents in size.sizes:
            rules, shares, off = chosen[world.name, documents].result()
            now, before = (rules[name].mean_regrets_and_spread(world.grid) for name in ("now", "before"))
            if documents == size.sizes[0]:
                ratios.append((now[0] / max(before[0], 1e-12), now[1] / max(before[1], 1e-12)))
            gains += shares.under("gain").values()
            title = f"λ* in {world.name}, {documents} documents: regret of NLL and of ECE, standard deviation of λ*"
            table(title, [("now", *now), ("before", *before)])
            table(
                "  bias at λ*",
                [(name, float(np.mean(one)), "coverage", shares.of("star", name)) for name, one in off.items()],
            )
            for what in ("gain", "level", "power", "claim"):
                table(f"  {what}", [(*key[1:], share) for key, share in shares.under(what).items()])
    held = [*cells.under("contains", "now").values(), *many.under("contains", "now").values()]
    found = {
        "ece_coverage_min": min(cells.under("now", "ece").values()),
        "ece_diff_coverage_min": min(cells.under("now", "difference").values()),
        "macro_coverage_min": min(many.of("now", name) for name in ("pool", "pool difference")),
        "contains_value": float(np.mean(held)),
        "nll_regret_ratio": max(nll for nll, _ in ratios),
        "ece_regret_ratio": max(ece for _, ece in ratios),
        "gain_coverage_min": min(gains),
    }
    taken = os.times()
    print(f"\n{taken.user + taken.system + taken.children_user + taken.children_system:.0f} s of processor time")
    print(json.dumps(found | {"trials": size.trials, "resamples": size.resamples}))


if __name__ == "__main__":
    main()
