"""Figures follow the controls of the page, which are its list of tasks and its λ slider."""

from calibration.report.vega import Spec

TASK, STOP = "task", "point"  # the names that the page's controls set

OF_TASK = f"datum.task === {TASK}"
OF_STOP = f"datum.point === toNumber({STOP})"  # the data call a stop "point"; a slider's value is text


def task_param(element: str, task: str) -> Spec:
    """Return the parameter that a list of tasks on the page (a CSS selector) sets."""
    return {"name": TASK, "value": task, "bind": {"element": element}}


def stop_param(stop: int) -> Spec:
    """Return the parameter that the λ slider sets."""
    return {"name": STOP, "value": stop, "bind": {"element": "#lambda"}}
