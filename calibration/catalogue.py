"""Every metric is here once, with what it is called, what its numbers are, what computes it, and where it is shown.

A new metric of choice tasks is one entry. Where it is the mean over documents of a number, `mean_of` returns that number.
Else a function of `calibration/metrics/` returns it beside others of its kind, under the name `key`. The terminal, the
report, the model card, the intervals, the answer and the table in docs/metrics.md follow.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.arrays import BINS, Floats
from calibration.metrics.predictions import Predictions
from calibration.scores.per_document import CONFIDENCES, PMI

# What a task is scored as, or pooled choice tasks.
Task = Literal["choices", "continuation", "samples", "answers", "pool"]
Direction = Literal["up", "down", "zero", "none"]  # which numbers are better; zero: the nearest to it
Interval = Literal["percentile", "honest", "normal", "none"]  # `intervals.interval` says what they are

ACCURACY = {"sum": "acc", "tokens": "acc_tokens", "bytes": "acc_bytes", PMI: "acc_pmi"}  # the accuracy by confidence
COUNTED: dict[Task, str] = {
    "choices": "nll",
    "continuation": "nll",
    "samples": "distinct_answers",
    "answers": "mean_at_k",
    "pool": "nll",
}
"""The metric that every document with a score has, so that its n is how many there are."""

_ARROWS: dict[Direction, str] = {"up": " ↑", "down": " ↓", "zero": " → 0", "none": ""}


@dataclass(frozen=True, slots=True)
class Column:
    """Describes a column of a terminal's table."""

    place: int  # the place from the left
    header: str
    form: str = "z.4f"  # with z, what rounds to zero has no minus
    ends: str = ""  # the form of the interval's ends; empty where the interval is not shown


@dataclass(frozen=True, slots=True)
class Answer:
    """Says what the answer calls a calibration error that accuracy may be held against; it is in [0, 1], lower is better."""

    word: str  # its word in the sentence
    title: str  # its title on the axis of the frontier


@dataclass(frozen=True, slots=True)
class Metric:
    """Describes a metric of one kind of tasks."""

    name: str  # its name in metrics.parquet
    title: str
    unit: str  # what its numbers are
    direction: Direction
    interval: Interval = "percentile"
    source: str = ""  # author and year; docs/metrics.md and the docstring of what computes it have the formula
    key: str = ""  # the name under which a function returns it, where that is another
    mean_of: Callable[[Predictions], Floats] | None = None  # [D], one number a document; the mean with an ∞ in it is ∞
    confidence: str = ""  # the only confidence under which it is called so
    once: bool = False  # stored under confidence sum only, because it is the same for all
    scaled: bool = False  # whether it is also computed after temperature scaling, as <name>_scaled
    compared: bool = True  # whether its difference to each parent is also stored, as <name>_vs_<parent>
    pooled: bool = False  # whether pooled tasks have it, too; means have it always
    per_parent: bool = False  # whether there is one for each parent, <name>_<parent>
    per_count: bool = False  # whether there is one for each of several numbers of outputs, <name>_<number>
    of_contexts: bool = True  # whether it exists where each choice has a context of its own
    arbitrary: bool = (
        False  # whether an arbitrary temperature decides it and none is fitted: not shown per token and byte
    )
    floor: str = ""  # the metric that says what noise alone gives of it; the report draws it beside it
    answer: Answer | None = None
    column: Column | None = None
    drawn: bool = False  # whether the report has a figure of it along λ, and a column
    form: str = ".4f"  # the form of its numbers in the report
    card: str = ""  # what a model card calls it; empty where it is not there

    @property
    def computed_as(self) -> str:
        """Return the name under which functions return it."""
        return self.key or self.name

    @property
    def axis(self) -> str:
        """Return what the numbers are, and which are better."""
        return self.unit + _ARROWS[self.direction]

    @property
    def is_main(self) -> bool:
        """Tell whether its interval is shown where there is room for few."""
        return bool(self.column and self.column.ends)


_SHARE, _IN_BINS, _NATS = "share of documents", f"0 to 1 ({BINS} bins)", "nats per document"
_SQUARED = f"squared gap ({BINS} bins)"

FLOOR = 1e-9  # the least probability of the right choice that `nll_floored` takes

_CHOICES = (
    *(
        Metric(
            *(name, "Accuracy", _SHARE, "up"),
            key="correct",
            mean_of=lambda made: made.correct.astype(np.float64),
            confidence=confidence,
            column=Column(1, "accuracy", ends=".3f"),
            drawn=True,
            card="accuracy" if confidence == CONFIDENCES[0] else "",
        )
        for confidence, name in ACCURACY.items()
    ),
    Metric(
        *(f"ece_width{BINS}", "ECE", _IN_BINS, "down", "honest", "Naeini 2015; Guo 2017"),
        key="ece_width",
        pooled=True,
        scaled=True,
        floor=f"ece_floor{BINS}",
        answer=Answer("ECE", f"ECE ({BINS} bins of equal width)"),
        column=Column(2, "ECE", ends=".3f"),
        drawn=True,
        card=f"ECE, {BINS} bins of equal width",
    ),
    Metric(
        *(f"ece_mass{BINS}", "ECE in bins of equal mass", _IN_BINS, "down", "honest", "Nixon 2019"),
        key="ece_mass",
        answer=Answer("ECE", f"ECE ({BINS} bins of equal mass)"),
    ),
    Metric(
        *(f"ece_classwise{BINS}", "Class-wise ECE", _IN_BINS, "down", "honest", "Nixon 2019; Kull 2019"),
        key="ece_classwise",
        answer=Answer("ECE", f"class-wise ECE ({BINS} bins)"),
    ),
    Metric(
        *("smece", "Smooth ECE", "0 to 1", "down", "honest", "Błasiok 2024"),
        arbitrary=True,
        answer=Answer("smooth ECE", "smooth ECE"),
        drawn=True,
    ),
    Metric(
        *(f"ece_squared{BINS}", "Squared ECE without its noise", _SQUARED, "down", "normal"),
        source="Kumar 2019; Ferro 2012",
        key="ece_squared",
        pooled=True,
    ),
    Metric(
        *(f"ece_floor{BINS}", "ECE of noise alone", _IN_BINS, "none", "none", "Bröcker 2007"),
        key="ece_floor",
        pooled=True,
        compared=False,
    ),
    Metric(
        *(f"ece_width{BINS}_matched", "ECE at aligned's accuracy", _IN_BINS, "down", "honest", "Yang 2026; Holt 1979"),
        key="ece_width_matched",
        pooled=True,
    ),
    Metric(
        f"mce{BINS}",
        "Largest error of a bin",
        _IN_BINS,
        "down",
        "honest",
        "Naeini 2015; Clopper 1934",
        key="mce",
        pooled=True,
        compared=False,
    ),
    Metric("confidence", "Mean confidence", "0 to 1", "none", mean_of=lambda made: made.confidence, scaled=True),
    Metric(
        *("overconfidence", "Over-confidence", "confidence − accuracy", "zero"),
        scaled=True,
        pooled=True,
        column=Column(5, "conf−acc", form="+z.4f"),
        drawn=True,
    ),
    Metric(
        *("brier", "Brier score", "0 to 2", "down", "percentile", "Brier 1950"),
        mean_of=lambda made: made.brier,
        scaled=True,
        column=Column(3, "Brier"),
        drawn=True,
        card="Brier score",
    ),
    Metric("brier_reliability", "Brier score: reliability", "0 to 2", "down", "honest", "Murphy 1973"),
    Metric("brier_resolution", "Brier score: resolution", "0 to 2", "up", "honest", "Murphy 1973"),
    Metric("brier_uncertainty", "Brier score: uncertainty", "0 to 2", "none", "percentile", "Murphy 1973"),
    Metric("brier_within", "Brier score: within bins", "what is left", "none", "percentile", "Stephenson 2008"),
    Metric(
        *("nll", "NLL of the right choice", _NATS, "down"),
        mean_of=lambda made: made.nll,
        scaled=True,
        column=Column(4, "NLL"),
        drawn=True,
        card="NLL (nats)",
    ),
    Metric(
        *("nll_floored", f"NLL with probabilities of at least {FLOOR:g}", _NATS, "down"),
        mean_of=lambda made: np.minimum(made.nll, -math.log(FLOOR)),
        scaled=True,
    ),
    Metric(
        *("gold_impossible", "Right choices of probability 0", _SHARE, "down"),
        mean_of=lambda made: np.isinf(made.nll).astype(np.float64),
    ),
    Metric(
        *("nll_skill_uniform", "NLL skill against equal chances", "1 is best, 0 is no skill", "up"),
        source="Roulston 2002",
        pooled=True,
        arbitrary=True,
    ),
    Metric(
        *("nll_skill_prior", "NLL skill against the places of right choices", "1 is best, 0 is no skill", "up"),
        source="Roulston 2002",
        pooled=True,
        arbitrary=True,
        drawn=True,
    ),
    Metric(
        *("ks", "Largest cumulative difference", "0 to 1, without bins", "down", "none"),
        source="Gupta 2021; Arrieta-Ibarra 2022",
        compared=False,
        pooled=True,
        arbitrary=True,
        drawn=True,
    ),
    Metric(
        *("ks_p", "p-value of being calibrated", "0 to 1", "none", "none"),
        source="Arrieta-Ibarra 2022",
        compared=False,
        pooled=True,
        arbitrary=True,
    ),
    Metric("auroc", "AUROC of confidence", "0 to 1", "up", "percentile", "Mann 1947", drawn=True),
    Metric("aurc", "Area under risk and coverage", "0 to 1", "down", "percentile", "Geifman 2019; Zhou 2024"),
    Metric("eaurc", "Excess of that area over the best order", "0 to 1", "down", "percentile", "Geifman 2019"),
    Metric("acc_at_80", "Accuracy of the surest 80 %", _SHARE, "up", "percentile", "El-Yaniv 2010"),
    Metric(
        *(f"token_ece_width{BINS}", "ECE of tokens", _IN_BINS, "down", "honest", "Guo 2017"),
        key="token_ece_width",
        once=True,
        drawn=True,
    ),
    Metric("bits_per_byte", "Bits per byte of the right choice", "bits", "down", "percentile", "Gao 2021", once=True),
    Metric("option_mass", "Mass on the listed choices", "probability", "up", once=True, of_contexts=False, drawn=True),
    Metric(
        "temperature", "Temperature of the scaling", "above 0", "none", "none", "Guo 2017", pooled=True, compared=False
    ),
    Metric("agreement", "Same prediction as the parent", _SHARE, "none", per_parent=True, compared=False),
)

_CONTINUATION = (
    Metric(
        *("acc", "Greedy accuracy", _SHARE, "up"),
        column=Column(1, "accuracy", ends=".3f"),
        drawn=True,
        card="accuracy",
    ),
    Metric(
        *("nll", "NLL of the continuation", _NATS, "down"),
        column=Column(2, "NLL", ends=".2f"),
        drawn=True,
        card="NLL (nats)",
    ),
    Metric(
        *("perplexity", "Perplexity", "exp(NLL)", "down"),
        column=Column(3, "perplexity", form="#.5g"),
        drawn=True,
        form=".5g",
        card="perplexity",
    ),
    Metric(
        *("bits_per_byte", "Bits per byte", "bits", "down", "percentile", "Gao 2021"),
        column=Column(4, "bits/byte"),
        drawn=True,
    ),
    Metric(
        *(f"token_ece_width{BINS}", "ECE of tokens", _IN_BINS, "down", "honest", "Guo 2017"),
        key="token_ece_width",
        drawn=True,
    ),
)

_SAMPLES = (
    Metric(
        *("distinct_1", "Distinct-1", "share of different words", "none", "percentile", "Li 2016"),
        column=Column(1, "dist-1", ".4f"),
        drawn=True,
    ),
    Metric(
        *("distinct_2", "Distinct-2", "share of different word pairs", "none", "percentile", "Li 2016"),
        column=Column(2, "dist-2", ".4f", ".3f"),
        drawn=True,
        card="distinct-2 of samples",
    ),
    Metric(
        *("distinct_3", "Distinct-3", "share of different word triples", "none", "percentile", "Li 2016"),
        column=Column(3, "dist-3", ".4f"),
        drawn=True,
    ),
    Metric(
        *("self_bleu", "Self-BLEU", "0 to 1, of pairs of samples", "none", "percentile", "Zhu 2018; Post 2018"),
        column=Column(4, "self-BLEU", ".4f", ".3f"),
        drawn=True,
        card="self-BLEU of samples, 0 to 1",
    ),
    Metric(
        *("distinct_answers", "Distinct answers", "different samples of a prompt", "none"),
        source="Rajpurkar 2016",
        column=Column(5, "answers", ".2f"),
        drawn=True,
        form=".2f",
    ),
)

_OUTPUTS = "share of outputs"

_ANSWERS = (
    Metric(
        *("mean_at_k", "Right outputs (mean@k)", _OUTPUTS, "up"),
        once=True,
        column=Column(1, "mean@k", ends=".3f"),
        drawn=True,
        card="accuracy of written answers (mean@k)",
    ),
    Metric(
        *("vote_at_k", "Right voted answers (vote@k)", _SHARE, "up", "percentile", "Wang 2023"),
        once=True,
        column=Column(2, "vote@k"),
        drawn=True,
        card="accuracy of the most frequent answer (vote@k)",
    ),
    Metric(
        *("pass_at_k", "Documents with a right output (pass@k)", _SHARE, "up", "percentile", "Chen 2021"),
        once=True,
        column=Column(3, "pass@k"),
        drawn=True,
    ),
    Metric(
        *("pass_at", "The same for fewer outputs, unbiased", "probability", "up", "percentile", "Chen 2021"),
        once=True,
        per_count=True,
    ),
    Metric("acc", "Accuracy of what the confidence is of", _OUTPUTS, "up"),
    Metric(
        *(f"ece_width{BINS}", "ECE", _IN_BINS, "down", "honest", "Naeini 2015; Guo 2017"),
        scaled=True,
        column=Column(4, "ECE", ends=".3f"),
        drawn=True,
        card=f"ECE, {BINS} bins of equal width",
    ),
    Metric(f"ece_mass{BINS}", "ECE in bins of equal mass", _IN_BINS, "down", "honest", "Nixon 2019"),
    Metric("confidence", "Mean confidence", "0 to 1", "none", scaled=True),
    Metric("overconfidence", "Over-confidence", "confidence − accuracy", "zero", scaled=True, drawn=True),
    Metric(
        *("brier", "Brier score", "0 to 1, of right or wrong", "down", "percentile", "Brier 1950"),
        scaled=True,
        column=Column(5, "Brier"),
        drawn=True,
        card="Brier score",
    ),
    Metric(
        *("nll", "NLL of being right or wrong", "nats", "down", "percentile", "Good 1952"),
        scaled=True,
        drawn=True,
        card="NLL (nats)",
    ),
    Metric("nll_floored", f"NLL with probabilities of at least {FLOOR:g}", "nats", "down", scaled=True),
    Metric(
        *("auroc", "AUROC of confidence", "0 to 1", "up", "percentile", "Mann 1947"),
        column=Column(6, "AUROC", form="z.3f"),
        drawn=True,
    ),
    Metric("aurc", "Area under risk and coverage", "0 to 1", "down", "percentile", "Geifman 2019; Zhou 2024"),
    Metric("eaurc", "Excess of that area over the best order", "0 to 1", "down", "percentile", "Geifman 2019"),
    Metric("acc_at_80", "Accuracy of the surest 80 %", _OUTPUTS, "up", "percentile", "El-Yaniv 2010"),
    Metric("acc_at_50", "Accuracy of the surest 50 %", _OUTPUTS, "up", "percentile", "El-Yaniv 2010"),
    Metric("missing", "Outputs without this confidence", _OUTPUTS, "none", drawn=True),
    Metric("token_entropy", "Entropy of tokens", "nats per token", "none", once=True, drawn=True),
    Metric("single_cluster", "Documents whose outputs all say the same", _SHARE, "none", once=True, drawn=True),
    Metric(
        *("distinct_answers", "Different answers", "of a document's outputs", "none"), once=True, drawn=True, form=".2f"
    ),
    Metric(
        *("length", "Length of outputs", "tokens", "none"),
        once=True,
        column=Column(7, "tokens", form=".1f"),
        drawn=True,
        form=".1f",
    ),
    Metric("cut", "Outputs cut at the limit", _OUTPUTS, "none", once=True, drawn=True),
    Metric("thinking", "Length of thinking before an answer", "tokens", "none", once=True, drawn=True, form=".1f"),
)

# The means over tasks that stand beside pooled numbers, and what they are means of.
MACRO = {"nll_macro": "nll_floored", "brier_macro": "brier"}

_POOL = (
    *(
        # The table of pooled tasks has the means over tasks in the place of over-confidence.
        dataclasses.replace(one, column=None) if one.name == "overconfidence" else one
        for one in _CHOICES
        if one.pooled or one.mean_of
    ),
    Metric("nll_macro", "NLL, mean over tasks", _NATS, "down", column=Column(6, "macro\nNLL"), drawn=True),
    Metric(
        "brier_macro", "Brier score, mean over tasks", "0 to 2", "down", column=Column(7, "macro\nBrier"), drawn=True
    ),
)

METRICS: dict[Task, tuple[Metric, ...]] = {
    "choices": _CHOICES,
    "continuation": _CONTINUATION,
    "samples": _SAMPLES,
    "answers": _ANSWERS,
    "pool": _POOL,
}


def metrics_of(task: Task, confidence: str = CONFIDENCES[0]) -> tuple[Metric, ...]:
    """Return the metrics of a kind of tasks that are called so under a confidence."""
    return tuple(one for one in METRICS[task] if one.confidence in ("", confidence))


def shown(task: Task, confidence: str = CONFIDENCES[0]) -> tuple[Metric, ...]:
    """Return the metrics of a kind of tasks as tables and reports show them.

    Confidences per token and per byte have an arbitrary temperature, which can turn a conclusion round. So what depends on
    it is shown after temperature scaling there, and not at all where it is not scaled. Those of written answers are shown
    after Platt scaling.
    """
    found = metrics_of(task, confidence)
    if task == "answers":
        return tuple(_after_scaling(one, "Platt-scaled") if one.scaled else one for one in found)
    if confidence == CONFIDENCES[0] or task not in ("choices", "pool"):
        return found
    return tuple(_after_scaling(one) if one.scaled else one for one in found if not one.arbitrary)


def _after_scaling(one: Metric, how: str = "temperature-scaled") -> Metric:
    column = dataclasses.replace(one.column, header=f"{one.column.header} {how[0].upper()}") if one.column else None
    title = f"{one.title}, {how}"
    return dataclasses.replace(one, name=f"{one.name}_scaled", title=title, scaled=False, floor="", column=column)


def find(name: str) -> Metric | None:
    """Return the metric of a name in metrics.parquet, that of a difference (`…_vs_…`) or a scaled one (`…_scaled`), too."""
    among, found = _FOUND.get(name, ((), None))
    now = tuple(METRICS.values())
    if among != now:  # asked for the first time, or metrics were added since
        found = _search(_plain(name), _every())
        _FOUND[name] = now, found
    return found


def is_once(name: str, task: Task) -> bool:
    """Tell whether what a task has under a name in metrics.parquet stands under confidence sum only, being no confidence's.

    Counts of documents, which are no metrics, are such.
    """
    found = _search(_plain(name), METRICS[task])
    return found is None or found.once


def _plain(name: str) -> str:
    return name.partition("_vs_")[0].removesuffix("_scaled")


def _search(plain: str, among: Iterable[Metric]) -> Metric | None:
    for one in among:
        several = one.per_parent or (one.per_count and plain.rpartition("_")[2].isdigit())
        if plain == one.name or (several and plain.startswith(f"{one.name}_")):
            return one
    return None


# Every row of metrics.parquet asks: each name with the metrics among which it was looked for, and what was found.
_FOUND: dict[str, tuple[tuple[tuple[Metric, ...], ...], Metric | None]] = {}


def stored_names(confidence: str) -> dict[str, str]:
    """Return under which names it is stored what the functions of choice tasks return, by their names for it."""
    found = {}
    for one in metrics_of("choices", confidence):
        found[one.computed_as] = one.name
        if one.scaled:
            found[f"{one.computed_as}_scaled"] = f"{one.name}_scaled"
    return found


def columns(task: Task, confidence: str = CONFIDENCES[0]) -> list[tuple[Metric, Column]]:
    """Return the columns of a terminal's table from the left."""
    found = [(one, one.column) for one in shown(task, confidence) if one.column]
    return sorted(found, key=lambda pair: pair[1].place)


def _every() -> Iterator[Metric]:
    return itertools.chain.from_iterable(METRICS.values())


def answers() -> dict[str, Answer]:
    """Return the calibration errors that accuracy may be held against; the first is the default."""
    return {one.name: one.answer for one in _every() if one.answer}


ERROR = next(iter(answers()))  # what accuracy is held against unless something else is asked for


def card_names() -> dict[str, str]:
    """Return what a model card calls the metrics that it shows."""
    return {one.name: one.card for one in _every() if one.card}


def kind_of(names: Iterable[str]) -> Task:
    """Return what a task is scored as whose metrics have these names."""
    known = {task: {one.name for one in some} for task, some in METRICS.items()}
    there = set(names)
    if COUNTED["answers"] in there:
        return "answers"
    if there & known["samples"]:
        return "samples"
    if there & MACRO.keys():
        return "pool"
    return "continuation" if there & (known["continuation"] - known["choices"]) else "choices"


def table() -> Iterator[str]:
    """Yield the lines of the table in docs/metrics.md."""
    yield "| tasks | metric | what | numbers | better | 95 % interval | source |"
    yield "|---|---|---|---|---|---|---|"
    better = {"up": "higher", "down": "lower", "zero": "nearer to 0", "none": "–"}
    for task, some in METRICS.items():
        for one in some:
            name = f"`{one.name}{'_<parent>' if one.per_parent else '_<number>' if one.per_count else ''}`"
            cells = (task, name, one.title, one.unit, better[one.direction], one.interval, one.source or "–")
            yield f"| {' | '.join(cells)} |"
