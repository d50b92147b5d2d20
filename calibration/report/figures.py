"""This module makes all figures of a run: those of the page follow its controls, and those for a paper stand still."""

from collections.abc import Callable, Sequence
from typing import Any

from calibration.report.controls import OF_STOP, OF_TASK, TASK, stop_param, task_param
from calibration.report.cumulative_figure import cumulative_chart, cumulative_rows
from calibration.report.curve_figure import curve_chart, curve_rows, outcome_curve_rows
from calibration.report.facts import Facts, TaskFacts
from calibration.report.frontier_figure import frontier_chart, frontier_rows
from calibration.report.measures import Measure, drawn_measures
from calibration.report.plane_figure import plane_chart, plane_measures, plane_rows
from calibration.report.reliability_figure import bin_dicts, histogram_chart, reliability_chart
from calibration.report.tasks_figure import domain, task_rows, tasks_chart
from calibration.report.vega import Spec, facet, following, nominal

PAPER_TASKS = 12  # figures for a paper show the first tasks only; the page and the tables hold all

_TASK, _CONTINUATION, _WRITTEN, _SAMPLED, _OUTCOME = "#task", "#continuation", "#written", "#sampled", "#lm-eval"
OUTCOME_FIGURES = 12  # the page draws the first metrics of lm-eval only; the tables hold all


def page_figures(facts: Facts) -> dict[str, dict[str, Spec]]:
    """Return the charts of each section of the page, by the element's id; a section with nothing to draw is left out."""
    found: dict[str, dict[str, Spec]] = {}
    stop = facts.start
    frontiers = {}
    if facts.frontiers and facts.frontiers[0][1].is_pooled:
        rows = list(frontier_rows(facts, *facts.frontiers[0]))
        pooled = frontier_chart(facts, rows, follows=True) | {"title": _title(facts.frontiers[0][0]), "height": 300}
        frontiers["frontier-pooled"] = following(pooled, [stop_param(stop)])
    if one := _frontiers(facts, facts.choice_tasks, _TASK, stop):
        frontiers["frontier-task"] = one
    found["frontier"] = frontiers
    found["plane"] = _planes(facts, facts.choice_tasks, drawn_measures("choices", facts.confidence), _TASK)
    found["curves"] = _curves(facts, facts.choice_tasks, drawn_measures("choices", facts.confidence), _TASK, stop)
    found["reliability"] = _reliability(facts, facts.choice_tasks, ("documents", "tokens"), _TASK, stop)
    found["reliability"] |= _cumulative(facts, _TASK, stop)
    multiples = {task.name: list(task_rows(facts, task)) for task in facts.choice_tasks if not facts.coordinates}
    span = domain([row for rows in multiples.values() for row in rows])
    found["tasks"] = {
        f"tasks-{i}": tasks_chart(facts, rows, span) | {"title": _title(name)}
        for i, (name, rows) in enumerate(multiples.items())
    }
    continuations = facts.continuation_tasks
    found["continuation"] = _planes(facts, continuations, drawn_measures("continuation"), _CONTINUATION)
    found["continuation"] |= _curves(facts, continuations, drawn_measures("continuation"), _CONTINUATION, stop)
    found["continuation"] |= _reliability(facts, continuations, ("tokens",), _CONTINUATION, stop)
    answers, measures = facts.answer_tasks, drawn_measures("answers", facts.answer_confidence)
    own = _frontiers(facts, answers, _WRITTEN, stop)
    found["answers"] = {"written-frontier": own} if own else {}
    found["answers"] |= _planes(facts, answers, measures, _WRITTEN) | _curves(facts, answers, measures, _WRITTEN, stop)
    found["answers"] |= _reliability(facts, answers, ("answers",), _WRITTEN, stop)
    found["diversity"] = _planes(facts, facts.generate_tasks, drawn_measures("samples"), _SAMPLED)
    found["diversity"] |= _curves(facts, facts.generate_tasks, drawn_measures("samples"), _SAMPLED, stop)
    found["outcomes"] = _outcomes(facts, stop)
    return {section: charts for section, charts in found.items() if charts}


def paper_figures(facts: Facts) -> dict[str, Spec]:
    """Return the figures for a paper by file name, of at most PAPER_TASKS tasks each."""
    found: dict[str, Spec] = {}
    if shown := facts.frontiers[:PAPER_TASKS]:
        rows = [row for name, one in shown for row in frontier_rows(facts, name, one)]
        chart = frontier_chart(facts, rows) | {"width": 420, "height": 320}
        found["frontier"] = _facet(chart, [name for name, _ in shown], columns=2) | {
            "resolve": {"scale": {"x": "independent", "y": "independent"}}
        }
    tasks = facts.choice_tasks[:PAPER_TASKS]
    if tasks and facts.coordinates:
        found |= _paper_planes(facts, tasks, drawn_measures("choices", facts.confidence))
    elif tasks:
        found["curves"] = _grid(facts, tasks, drawn_measures("choices", facts.confidence))
        rows = [row for task in tasks for row in task_rows(facts, task)]
        chart = tasks_chart(facts, rows, domain(rows)) | {"width": 240, "height": 180}
        found["tasks"] = _facet(chart, [task.name for task in tasks], columns=3)
    if facts.answer_tasks and not facts.coordinates:
        measures = drawn_measures("answers", facts.answer_confidence)
        found["answers"] = _grid(facts, facts.answer_tasks[:PAPER_TASKS], measures)
    for events, of in (("documents", tasks), ("tokens", facts.tasks), ("answers", facts.answer_tasks)):
        names = [task.name for task in of if task.lambdas][:PAPER_TASKS]
        rows = [row for row in _landmarks(facts, events) if row["task"] in names] if names else []
        if rows:
            found[f"reliability-{events}"] = _side_by_side(reliability_chart(rows, facts.every_lam, events), 200, rows)
            found[f"confidence-{events}"] = _side_by_side(histogram_chart(rows, facts.every_lam, events), 110, rows)
    if facts.continuation_tasks and not facts.coordinates:
        found["continuation"] = _grid(facts, facts.continuation_tasks[:PAPER_TASKS], drawn_measures("continuation"))
    if facts.generate_tasks and not facts.coordinates:
        found["diversity"] = _grid(facts, facts.generate_tasks[:PAPER_TASKS], drawn_measures("samples"))
    return found


def _title(name: str | Spec) -> Spec:
    return {"text": name, "limit": 300}


def _following(chart: Spec, control: str, tasks: Sequence[TaskFacts], stop: int, filters: str = OF_TASK) -> Spec:
    """Let a chart follow the page's controls."""
    return following(chart, [task_param(control, tasks[0].name), stop_param(stop)], filters)


def _frontiers(facts: Facts, tasks: Sequence[TaskFacts], control: str, stop: int) -> Spec | None:
    """Draw the frontiers of some tasks, of which the page shows one at a time; None where they have none."""
    rows = [row for task in tasks if task.frontier for row in frontier_rows(facts, task.name, task.frontier)]
    if not rows:
        return None
    chart = frontier_chart(facts, rows, follows=True) | {"title": _title({"expr": TASK}), "height": 300}
    return _following(chart, control, tasks, stop)


def _curves(
    facts: Facts, tasks: Sequence[TaskFacts], measures: Sequence[Measure], control: str, stop: int
) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for measure in () if facts.coordinates else measures:
        rows = [row for task in tasks for row in curve_rows(facts, task, measure)]
        if rows:
            chart = curve_chart(facts, rows, measure, follows=True) | {"title": measure.title, "height": 200}
            found[f"{control[1:]}-{measure.metric}"] = _following(chart, control, tasks, stop)
    return found


def _planes(facts: Facts, tasks: Sequence[TaskFacts], measures: Sequence[Measure], control: str) -> dict[str, Spec]:
    found = {}
    for measure in plane_measures(facts, measures):
        rows = [row for task in tasks for row in plane_rows(facts, task, measure)]
        if rows:
            chart = plane_chart(facts, rows, measure) | {"title": measure.title, "height": 260}
            params = [task_param(control, tasks[0].name)]
            found[f"{control[1:]}-plane-{measure.metric}"] = following(chart, params, OF_TASK)
    return found


def _paper_planes(facts: Facts, tasks: Sequence[TaskFacts], measures: Sequence[Measure]) -> dict[str, Spec]:
    charts = [
        plane_chart(facts, list(plane_rows(facts, task, measure)), measure)
        | {"title": _title(f"{task.name}: {measure.title}"), "width": 260, "height": 220}
        for task in tasks
        for measure in plane_measures(facts, measures)
    ]
    return {"plane": {"concat": charts, "columns": 2, "resolve": {"scale": {"color": "independent"}}}} if charts else {}


def outcome_metrics(facts: Facts) -> list[str]:
    """Return the metrics of lm-eval that can be drawn, in order of appearance.

    They are those for which any task has a finite number; there are none where points have several coordinates.
    """
    if facts.coordinates:
        return []
    drawn = {
        metric: None for one in facts.outcomes for metric in one.cells if list(outcome_curve_rows(facts, one, metric))
    }
    return list(drawn)


def _outcomes(facts: Facts, stop: int) -> dict[str, Spec]:
    found = {}
    for i, metric in enumerate(outcome_metrics(facts)[:OUTCOME_FIGURES]):
        rows = [row for one in facts.outcomes for row in outcome_curve_rows(facts, one, metric)]
        measure = Measure(
            metric, metric.removesuffix(",none"), "as the evaluator says" if facts.each else "as lm-eval says"
        )
        follows = bool(facts.grid)  # a page without finished λs has no slider
        chart = curve_chart(facts, rows, measure, follows) | {"title": measure.title, "height": 200}
        params = [task_param(_OUTCOME, facts.outcomes[0].name), *([stop_param(stop)] if follows else [])]
        found[f"outcome-{i}"] = following(chart, params, OF_TASK)
    return found


def _reliability(
    facts: Facts, tasks: Sequence[TaskFacts], kinds: Sequence[str], control: str, stop: int
) -> dict[str, Spec]:
    found = {}
    names = {task.name for task in tasks}
    drawn: list[tuple[str, Callable[..., Spec], str, int]] = [
        ("reliability", reliability_chart, "Reliability of {}", 300),
        ("confidence", histogram_chart, "Confidence of {}", 150),
    ]
    for of in kinds:
        rows = [row for row in bin_dicts(facts.bins, of, facts.stops) if row["task"] in names]
        for name, chart, title, height in drawn if rows else ():
            one = chart(rows, facts.every_lam, of) | {"title": title.format(of), "height": height}
            filters = f"{OF_TASK} && {OF_STOP}"
            found[f"{control[1:]}-{name}-{of}"] = _following(one, control, tasks, stop, filters)
    return found


def _cumulative(facts: Facts, control: str, stop: int) -> dict[str, Spec]:
    rows = [row for task in facts.choice_tasks for row in cumulative_rows(facts, task)]
    if not rows:
        return {}
    one = cumulative_chart(rows, facts.every_lam) | {"title": "Cumulative differences", "height": 300}
    return {f"{control[1:]}-cumulative": _following(one, control, facts.choice_tasks, stop, f"{OF_TASK} && {OF_STOP}")}


def _facet(chart: Spec, names: list[str], columns: int) -> Spec:
    return facet(chart, nominal("task", title=None, sort=names), columns=columns)


def _grid(facts: Facts, tasks: Sequence[TaskFacts], measures: Sequence[Measure]) -> Spec:
    """Put every metric of every task next to each other, with a row for each task."""
    charts = []
    for task in tasks:
        row = []
        for measure in measures:
            title = f"{task.name}: {measure.title}" if len(tasks) > 1 else measure.title
            rows = list(curve_rows(facts, task, measure))
            if rows:  # pooled tasks do not have every metric, and some metrics do not exist for some answers
                size = {"title": _title(title), "width": 230, "height": 160}
                row.append(curve_chart(facts, rows, measure) | size)
        charts.append({"concat": row, "columns": 3})
    return {"vconcat": charts}


def _landmarks(facts: Facts, events: str) -> list[dict[str, Any]]:
    """Return the bins of the parents and of λ*, or of the middle λ of the grid where there is no λ*."""
    star = facts.chosen or facts.grid[len(facts.grid) // 2]
    names = {lam: name for name, lam in facts.parents.items()}
    names[star] = f"{names[star]}, λ*" if star in names else f"λ* = {star}" if facts.chosen else f"λ = {star}"
    rows = bin_dicts(facts.bins, events, facts.grid)
    return [row | {"label": names[row["lambda"]]} for row in rows if row["lambda"] in names]


def _side_by_side(chart: Spec, height: int, rows: list[dict[str, Any]]) -> Spec:
    tasks, labels = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "label"))
    channels = {"row": nominal("task", title=None, sort=tasks), "column": nominal("label", title=None, sort=labels)}
    return facet(chart | {"width": 220, "height": height}, channels)
