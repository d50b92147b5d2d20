"""This module says which metrics a report draws along λ, and what their axes say."""

from dataclasses import dataclass

from calibration.catalogue import Task, shown


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure is a metric that is drawn."""

    metric: str
    title: str
    axis: str  # what the numbers are, with their unit and which are better
    scaled: str | None = None  # the name of the same metric of aligned after temperature scaling
    floor: str = ""  # the metric that says what noise alone gives; empty where there is none
    form: str = ".4f"
    is_main: bool = False
    is_error: bool = False  # whether less of it is better


def drawn_measures(task: Task, confidence: str = "sum") -> tuple[Measure, ...]:
    """Return the metrics of a kind of tasks."""
    return tuple(
        Measure(
            one.name,
            one.title,
            one.axis,
            f"{one.name}_scaled" if one.scaled else None,
            one.floor,
            one.form,
            one.is_main,
            one.direction == "down",
        )
        for one in shown(task, confidence)
        if one.drawn
    )
