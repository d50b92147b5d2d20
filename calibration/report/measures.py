"""The metrics that a report draws along λ, with what their axes say."""

from dataclasses import dataclass

from calibration.catalogue import Task, metrics_of


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric."""

    metric: str
    title: str
    axis: str  # what the numbers are, with their unit and which are better
    scaled: str | None = None  # the same of aligned after temperature scaling
    form: str = ".4f"
    is_main: bool = False


def drawn_measures(task: Task, confidence: str = "sum") -> tuple[Measure, ...]:
    """Return the metrics of a kind of tasks."""
    return tuple(
        Measure(one.name, one.title, one.axis, f"{one.name}_scaled" if one.scaled else None, one.form, one.is_main)
        for one in metrics_of(task, confidence)
        if one.drawn
    )
