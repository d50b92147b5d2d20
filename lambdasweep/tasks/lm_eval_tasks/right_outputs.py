"""This module finds out by which of a task's metrics an output is right: it grades outputs that are made up."""

from typing import Any

import numpy as np

_MADE_UP = "The answer is 1."
_RIGHT = ("exact_match", "acc", "em")  # metrics that are 1 where an output is right


def try_grading(task: Any, doc: Any, instance: Any, repeats: int) -> tuple[str, tuple[str, ...]]:
    """Grade made-up outputs of a document.

    Args:
        task: lm-eval's object.
        doc: the document.
        instance: the only instance that lm-eval makes of it.
        repeats: the outputs that lm-eval takes of each document.

    Returns:
        The metric that an output is right by, `metric,filter`: of the first filter that can do with one output
        `exact_match`, `acc` or `em`, where it has one of these, else its first metric that ends in `_acc`, else its first
        one that is a number of which more is better; and all such filters.

    Raises:
        ValueError: no metric of a single output is a number of which more is better.
        Exception: whatever the task's functions raise.
    """
    instance.resps, instance.filtered_resps = [_MADE_UP] * repeats, {}
    for ensemble in task._filters:
        ensemble.apply([instance])
        task.process_results(doc, [instance.filtered_resps[ensemble.name]])
    is_better = task.higher_is_better()
    singles: list[str] = []
    metric = ""
    instance.resps, instance.filtered_resps = [_MADE_UP], {}
    for ensemble in task._filters:
        try:
            ensemble.apply([instance])
        except Exception:  # it wants several outputs, as one that counts votes
            continue
        singles.append(ensemble.name)
        values = task.process_results(doc, [instance.filtered_resps[ensemble.name]])
        numbers = [key for key, value in values.items() if is_number(value) and is_better.get(key, True)]
        best = next((key for key in (*_RIGHT, *filter(_is_accuracy, numbers), *numbers) if key in numbers), None)
        if best and not metric:
            metric = f"{best},{ensemble.name}"
    if not metric:
        raise ValueError("no metric of a single output is a number of which more is better")
    return metric, tuple(singles)


def judged_by(task: Any, doc: Any, instance: Any, metric: str) -> str | None:
    """Return why a document is not judged by a metric of `try_grading`, or None where it is.

    A task may give documents metrics of their own, and others a negative number (RULER's are by length).
    """
    key, _, name = metric.rpartition(",")
    (ensemble,) = (one for one in task._filters if one.name == name)
    instance.resps, instance.filtered_resps = [_MADE_UP], {}
    ensemble.apply([instance])
    value = task.process_results(doc, [instance.filtered_resps[name]]).get(key)
    if not is_number(value):
        return f"has no number {key}"
    return f"has {key} {value:g}" if value < 0 else None


def metric_warnings(name: str, metric: str) -> tuple[str, ...]:
    """Return what a user must know of the metric that outputs are right by, unless its name says it."""
    own = metric.partition(",")[0]
    return () if own in _RIGHT or _is_accuracy(own) else (f"task {name}: an output is right where {own} is 1",)


def _is_accuracy(metric: str) -> bool:
    return metric.endswith("_acc")


def is_number(value: Any) -> bool:
    """Tell whether the metric of an output is a number, and nothing that only an aggregation makes a number of."""
    return isinstance(value, (bool, int, float, np.bool_, np.number))
