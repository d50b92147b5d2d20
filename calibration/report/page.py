"""The page shows a run: its answer, its figures, and its numbers."""

from collections.abc import Sequence

from calibration.catalogue import answers
from calibration.frontier.lambda_star import MARGIN
from calibration.report.document import document
from calibration.report.facts import Facts
from calibration.report.figures import page_figures
from calibration.report.identity import Quarantined, command_record, identity, task_records
from calibration.report.notices import notices
from calibration.report.numbers import numbers
from calibration.report.rivals import rival_notes, rival_tables
from contract.formula import formula
from contract.points import ONLY
from contract.records import LineRecord, Plan, SweepRecord


def page(
    facts: Facts,
    sweep: SweepRecord,
    plan: Plan,
    quarantined: list[Quarantined],
    figures: list[str],
    margin: float = MARGIN,
    history: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page as HTML. Equal arguments give equal text.

    Args:
        facts: the facts that are drawn.
        sweep: the record of sweep.json.
        plan: the tasks of plan.json.
        quarantined: the run's requests that could not be scored, by task and reason.
        figures: the names of the files in figures/, without their endings.
        margin: the accuracy that λ* may give up, as a share of documents.
        history: what made the run, as (name, value).
    """
    charts = page_figures(facts)
    return document(
        "page.html",
        {name: chart for section in charts.values() for name, chart in section.items()},
        formula=_formula(sweep.line or LineRecord(), facts.coordinates),
        facts=facts,
        margin=f"{100 * margin:g}",
        error_title=answers()[facts.error].title,
        notices=list(notices(facts)),
        charts=charts,
        rivals=rival_tables(facts),
        rival_notes=rival_notes(facts),
        numbers=numbers(facts),
        identity=[*history, *identity(sweep)],
        task_records=task_records(plan),
        command=command_record(facts.each),
        quarantined=quarantined,
        paper=figures,
    )


def _formula(line: LineRecord, names: Sequence[str]) -> str:
    lams = {name: f"λ_{name}" for name in names} or {ONLY: "λ"}
    return f"{'θ' if names else 'θ(λ)'} = {formula(line.method, lams, bool(line.lam_map))}"
