"""Figures follow the controls of the page, which are its list of tasks and its λ slider."""

import altair as alt

TASK, POINT = "task", "point"

OF_TASK = f"datum.task === {TASK}"
OF_POINT = f"datum.point === toNumber({POINT})"  # a point is the place of λ in the grid; a slider's value is text


def task_param(element: str, task: str) -> alt.Parameter:
    """Return the parameter that a list of tasks on the page (a CSS selector) sets."""
    return alt.param(name=TASK, value=task, bind=alt.BindDirect(element=element))


def point_param(point: int) -> alt.Parameter:
    """Return the parameter that the λ slider sets."""
    return alt.param(name=POINT, value=point, bind=alt.BindDirect(element="#lambda"))
