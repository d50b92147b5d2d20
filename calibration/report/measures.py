"""The metrics that a report draws along λ, with what their axes say."""

from dataclasses import dataclass

from calibration.arrays import BINS
from calibration.metrics.choice_tasks import ACCURACY

ERROR_TITLES = {
    f"ece_width{BINS}": f"ECE ({BINS} bins of equal width)",
    f"ece_mass{BINS}": f"ECE ({BINS} bins of equal mass)",
    f"ece_classwise{BINS}": f"class-wise ECE ({BINS} bins)",
    "smece": "smooth ECE",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric."""

    metric: str
    title: str
    axis: str  # what the numbers are, with their unit and which are better
    scaled: str | None = None  # the same of aligned after temperature scaling
    form: str = ".4f"


def choice_measures(confidence: str) -> tuple[Measure, ...]:
    """Return the metrics of choice tasks."""
    return (
        Measure(ACCURACY[confidence], "Accuracy", "share of documents ↑"),
        Measure(f"ece_width{BINS}", "ECE", f"0 to 1 ({BINS} bins) ↓", f"ece_width{BINS}_scaled"),
        Measure("smece", "Smooth ECE", "0 to 1 ↓"),
        Measure("overconfidence", "Over-confidence", "confidence − accuracy → 0", "overconfidence_scaled"),
        Measure("brier", "Brier score", "0 to 2 ↓", "brier_scaled"),
        Measure("nll", "NLL of the right choice", "nats per document ↓", "nll_scaled"),
        Measure("auroc", "AUROC of confidence", "0 to 1 ↑"),
        Measure(f"token_ece_width{BINS}", "ECE of tokens", f"0 to 1 ({BINS} bins) ↓"),
        Measure("option_mass", "Mass on the listed choices", "probability ↑"),
    )


def continuation_measures() -> tuple[Measure, ...]:
    """Return the metrics of continuation tasks."""
    return (
        Measure("acc", "Greedy accuracy", "share of documents ↑"),
        Measure("nll", "NLL of the continuation", "nats per document ↓"),
        Measure("perplexity", "Perplexity", "exp(NLL) ↓", form=".5g"),
        Measure(f"token_ece_width{BINS}", "ECE of tokens", f"0 to 1 ({BINS} bins) ↓"),
    )


def diversity_measures() -> tuple[Measure, ...]:
    """Return the metrics of generate tasks."""
    return (
        Measure("distinct_1", "Distinct-1", "share of different words"),
        Measure("distinct_2", "Distinct-2", "share of different word pairs"),
        Measure("distinct_3", "Distinct-3", "share of different word triples"),
        Measure("self_bleu", "Self-BLEU", "0 to 1, of pairs of samples"),
        Measure("distinct_answers", "Distinct answers", "different samples of a prompt", form=".2f"),
    )
