"""This module makes all figures of a run: those of the page follow its controls, and those for a paper stand still."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from calibration.catalogue import answers
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
    value_range = domain([row for rows in multiples.values() for row in rows])
    found["tasks"] = {
        f"tasks-{i}": tasks_chart(facts, rows, value_range) | {"title": _title(name)}
        for i, (name, rows) in enumerate(multiples.items())
    }
    continuations = facts.continuation_tasks
    found["continuation"] = _planes(facts, continuations, drawn_measures("continuation"), _CONTINUATION)
    found["continuation"] |= _curves(facts, continuations, drawn_measures("continuation"), _CONTINUATION, stop)
    found["continuation"] |= _reliability(facts, continuations, ("tokens",), _CONTINUATION, stop)
    written, measures = facts.answer_tasks, drawn_measures("answers", facts.asked_confidence)
    own = _frontiers(facts, written, _WRITTEN, stop)
    found["answers"] = {"written-frontier": own} if own else {}
    found["answers"] |= _planes(facts, written, measures, _WRITTEN) | _curves(facts, written, measures, _WRITTEN, stop)
    found["answers"] |= _reliability(facts, written, ("answers",), _WRITTEN, stop)
    found["diversity"] = _planes(facts, facts.generate_tasks, drawn_measures("samples"), _SAMPLED)
    found["diversity"] |= _curves(facts, facts.generate_tasks, drawn_measures("samples"), _SAMPLED, stop)
    found["outcomes"] = _outcomes(facts, stop)
    return {section: charts for section, charts in found.items() if charts}


def paper_figures(facts: Facts) -> dict[str, Spec]:
    """Return the figures for a paper by file name: one for each metric of each task, of at most PAPER_TASKS tasks.

    A figure's title is the task and the metric, and below it stand the pair and the number of documents.
    """
    found: dict[str, Spec] = {}
    shown = [task for task in facts.tasks if task.lambdas][:PAPER_TASKS]

    def add(kind: str, task: TaskFacts, title: str, counts: Iterable[int], chart: Spec, of: str = "documents") -> None:
        lines = [f"{facts.pair}, {_counted(counts, of)}", *([_LINES] if kind.startswith("confidence-") else [])]
        words = {"text": f"{task.name}: {title}", "subtitle": lines, "limit": 560, "anchor": "start"}
        found[f"{kind}-{_file_name(task.name)}"] = chart | {"title": words}

    for task in shown:
        if task.frontier is not None:
            counts = [point.documents for point in task.frontier.points]
            chart = frontier_chart(facts, list(frontier_rows(facts, task.name, task.frontier)))
            title = f"accuracy against {answers()[facts.error].title}"
            add("frontier", task, title, counts, chart | {"width": 420, "height": 320})
        measures = drawn_measures(task.kind, facts.confidence_of(task))
        if facts.coordinates:
            for measure in plane_measures(facts, measures):
                if rows := list(plane_rows(facts, task, measure)):
                    add(
                        measure.metric, task, measure.title, _documents(rows), plane_chart(facts, rows, measure) | _SIZE
                    )
            continue
        for measure in measures:
            if rows := list(curve_rows(facts, task, measure)):  # some metrics do not exist for some answers
                add(measure.metric, task, measure.title, _documents(rows), curve_chart(facts, rows, measure) | _SIZE)
        if task in facts.choice_tasks and (rows := list(task_rows(facts, task))):
            counts = [task.cell(lam, facts.accuracy).n for lam in task.lambdas]
            chart = tasks_chart(facts, rows, domain(rows)) | _SIZE
            add("accuracy-and-confidence", task, "accuracy and mean confidence", counts, chart)
    for of in ("documents", "tokens", "answers"):
        landmarks = _landmarks(facts, of) if facts.grid else []
        for task in shown:
            if rows := [row for row in landmarks if row["task"] == task.name]:
                for kind, drawn, height in (
                    ("reliability", reliability_chart, 200),
                    ("confidence", histogram_chart, 110),
                ):
                    chart = _side_by_side(drawn(rows, facts.every_lam, of), height, rows)
                    add(f"{kind}-{of}", task, f"{kind} of {of}", _totals(rows), chart, of)
    return found


_LINES = "solid line: accuracy; dashed line: mean confidence"  # the legend of a histogram
_SIZE: Spec = {"width": 320, "height": 220}


def _documents(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    return [row["documents"] for row in rows]


def _totals(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the sum of the bins' numbers at each λ."""
    found: Counter[str] = Counter()
    for row in rows:
        found[row["lambda"]] += row["n"]
    return list(found.values())


def _counted(counts: Iterable[int], of: str) -> str:
    every = sorted(set(counts))
    return f"n = {every[0]} {of}" if len(every) == 1 else f"n = {every[0]}–{every[-1]} {of}"


def _file_name(task: str) -> str:
    """Return a task's name as a part of a file's."""
    return quote(task, safe=" ").replace(" ", "-")


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


def _landmarks(facts: Facts, events: str) -> list[dict[str, Any]]:
    """Return the bins of the parents and of λ*, or of the middle λ of the grid where there is no λ*."""
    star = facts.chosen or facts.grid[len(facts.grid) // 2]
    names = {lam: name for name, lam in facts.parents.items()}
    names[star] = f"{names[star]}, λ*" if star in names else f"λ* = {star}" if facts.chosen else f"λ = {star}"
    rows = bin_dicts(facts.bins, events, facts.grid)
    return [row | {"label": names[row["lambda"]]} for row in rows if row["lambda"] in names]


def _side_by_side(chart: Spec, height: int, rows: list[dict[str, Any]]) -> Spec:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return facet(chart | {"width": 220, "height": height}, {"column": nominal("label", title=None, sort=labels)})
