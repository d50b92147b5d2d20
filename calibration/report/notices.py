"""A report admits what is missing, what is left out, and what must not be compared."""

from collections.abc import Iterator, Sequence

from calibration.catalogue import FLOOR
from calibration.report.facts import Facts, TaskFacts
from calibration.report.figures import OUTCOME_FIGURES, PAPER_TASKS, outcome_metrics
from calibration.scores.per_document import CONFIDENCES
from contract.points import is_named

_SHOWN = 8
_FEW = 30
_REASONS = {
    "docs_quarantined": "are in quarantine",
    "docs_undefined": "give every choice probability 0",
}


def notices(facts: Facts) -> Iterator[str]:
    """Yield one sentence for each thing that a reader could miss."""
    if facts.damaged:
        yield (
            f"Damaged tables count as absent, and their λs as partly scored: {'; '.join(facts.damaged)}. The command that "
            "made them scores them again."
        )
    if facts.judged_elsewhere:
        yield (
            f"Only lm-eval's own metrics can judge {', '.join(facts.judged_elsewhere)}; they are drawn under \"By "
            'lm-eval" and in no other figure.'
        )
    if facts.each:
        yield (
            "A command measured everything here, at each λ of one live server; lambdasweep computed none of these numbers. "
            "95 % intervals are ± 1.96 standard errors that the evaluators gave; a number without one has no interval."
        )
        if facts.unmeasured:
            yield f"{_span(facts.unmeasured)}: nothing is measured there, because the command failed or has not run yet."
    if not facts.tasks and not facts.judged_elsewhere and not facts.each:
        yield "No task has been asked for yet: nothing is scored."
    elif facts.tasks and not facts.grid:
        yield "No λ is finished yet: there is nothing to draw. Run the sweep on, then make the report again."
    if facts.coordinates:
        maps = "heat maps" if len(facts.coordinates) == 2 else "the table of numbers"
        yield (
            f"A point has {len(facts.coordinates)} coordinates ({', '.join(facts.coordinates)}), so there is nothing along "
            f"one λ: no curves, no interval of λ* and no λs beside it; {maps} and the frontier show the points."
        )
    if len(facts.parents) == 1:
        yield (
            "λ is weighed by module (line lam_map, below): λ = 1 is the whole map and not the aligned parent, with which "
            "nothing is compared here."
        )
    if facts.confidence != CONFIDENCES[0] and facts.choice_tasks:
        yield (
            f"The temperature of the confidence `{facts.confidence}` is arbitrary, so ECE, Brier score, "
            "NLL and over-confidence are shown after temperature scaling; the reliability diagrams show the confidences as "
            "they are."
        )
    for task in (one for one in facts.tasks if not one.is_pool):
        yield from (f"{task.name}: {text}" for text in _of_task(facts, task))
    if facts.grid and not facts.choice_tasks:
        yield (
            "There is no finished task with choices, so there is no confidence in a choice: no frontier, no λ*, and "
            "reliability of tokens only."
        )
    if len(facts.stops) < len(facts.grid):
        yield (
            f"The slider stops at {len(facts.stops)} of {len(facts.grid)} λs, to keep this page small; the bins of all of "
            "them are in bins.parquet."
        )
    if len(outcome_metrics(facts)) > OUTCOME_FIGURES:
        whose = "the evaluators" if facts.each else "lm-eval"
        yield f"The first {OUTCOME_FIGURES} metrics of {whose} are drawn; metrics.csv and metrics.parquet hold all of them."
    if (
        max(
            map(
                len,
                (
                    facts.choice_tasks,
                    facts.continuation_tasks,
                    facts.answer_tasks,
                    facts.generate_tasks,
                    facts.frontiers,
                ),
            )
        )
        > PAPER_TASKS
    ):
        yield f"The files in figures/ show the first {PAPER_TASKS} tasks; this page and the tables hold all of them."


def _of_task(facts: Facts, task: TaskFacts) -> Iterator[str]:
    if task.partial:
        yield f"{_lams(task.partial)} partly scored and in no figure, because fewer documents are no fair comparison."
    if task.missing:
        yield f"{_lams(task.missing)} not scored yet."
    if not task.lambdas:
        return
    for name, lam in facts.parents.items():
        if lam not in task.record.lambdas:
            yield f"λ = {lam} ({name}) is not in the grid, so nothing is compared with {name}."
        elif lam not in task.lambdas:
            yield f"λ = {lam} ({name}) is not finished, so nothing is compared with {name}."
    if len(task.lambdas) == 1:
        yield f"only λ = {task.lambdas[0]} is finished, so there is no curve yet."
    drawn = "" if facts.coordinates else "their points are hollow, no line goes through them, and "
    lacking = task.frontier.lacking if task.frontier else ()
    if others := [lam for lam in task.apart if lam not in lacking]:
        yield f"other documents have scores at {_span(others)} than at most λs: {drawn}nothing is compared with them."
    if lacking:
        yield f"too many outputs lack the confidence at {_span(lacking)}: {drawn}nothing is compared with them."
    for metric, words in _REASONS.items():
        touched = [lam for lam in task.lambdas if task.cell(lam, metric).value]
        if touched:
            counts = [int(task.cell(lam, metric).value or 0) for lam in touched]
            number = f"{min(counts)}–{max(counts)}" if min(counts) < max(counts) else str(counts[0])
            total = task.cell(touched[0], metric).n
            yield f"{number} of {total} documents {words} and are left out at {_span(touched)}."
    if not task.is_sampled:
        yield from _of_values(facts, task)
        return
    if 0 < (most := max(task.cell(lam, "distinct_answers").n for lam in task.lambdas)) < _FEW:
        yield f"{most} prompt{'s' if most > 1 else ''} only: differences between λs are mostly chance."
    if task.record.samples == 1:
        yield "there is one sample a prompt, so there are no pairs and no self-BLEU."


def _of_values(facts: Facts, task: TaskFacts) -> Iterator[str]:
    accuracy = "acc" if task.is_continuation or task.is_answered else facts.accuracy
    cells = {lam: task.cell(lam, accuracy) for lam in task.lambdas}
    empty = [lam for lam, cell in cells.items() if cell.value is None]
    if empty:
        yield f"no document could be evaluated for accuracy at {_span(empty)}."
    most = max(task.cell(lam, "nll").n for lam in task.lambdas)
    if 0 < most < _FEW:
        yield f"{most} document{'s' if most > 1 else ''} only: differences between λs are mostly chance."
    undecided = [lam for lam in task.lambdas if cells[lam].n < task.cell(lam, "nll").n]
    if undecided:
        fewest = min(cells[lam].n for lam in undecided)
        yield f"accuracy is of the documents with known token ranks only, at least {fewest} of {most}."
    for value, words in ((1.0, "right"), (0.0, "wrong")):
        same = [lam for lam, cell in cells.items() if cell.value == value and cell.n > 1]
        if same:
            so = "" if task.is_continuation else ", so confidence cannot rank them (no AUROC)"
            yield f"every answer is {words} at {_span(same)}{so}."
    where = [lam for lam in task.lambdas if task.cell(lam, "nll").value == float("inf")]
    if where and task.is_answered:
        yield f"an answer of confidence 1 is wrong at {_span(where)}: NLL is infinite there and not drawn."
    elif where:
        counts = [_impossible(task, lam) for lam in where]
        if any(counts):
            floored = [task.cell(lam, "nll_floored").value or 0.0 for lam in where]
            yield (
                f"{_range(counts, 'd')} right choices have probability 0 at {_span(where)}: NLL is infinite there and not "
                f"drawn. With probabilities of at least {FLOOR:g} it is {_range(floored, '.4f')}."
            )
        else:
            yield f"something right has probability 0 at {_span(where)}: NLL is infinite there and not drawn."
    if not task.is_continuation and task.frontier is None and not empty:
        yield "no frontier: it wants at least two documents in each half (select, report)."


def _impossible(task: TaskFacts, lam: str) -> int:
    cell = task.cell(lam, "gold_impossible")
    return round((cell.value or 0.0) * cell.n)


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


def _lams(lams: Sequence[str]) -> str:
    return f"{_span(lams)} {'is' if len(lams) == 1 else 'are'}"


def _span(lams: Sequence[str]) -> str:
    more = f" and {len(lams) - _SHOWN} more" if len(lams) > _SHOWN else ""
    return f"λ = {('; ' if is_named(lams[0]) else ', ').join(lams[:_SHOWN])}{more}"
