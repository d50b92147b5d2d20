"""This module gathers what an experiment tracker is given of a run: curves along λ, tables and the report's figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from contract.points import coordinates, is_named, order
from contract.rundir import RunDir, names
from contract.schemas import point_of

if TYPE_CHECKING:
    from calibration.analyse import Analysis

LAM = "lambda"


@dataclass(frozen=True, slots=True)
class AtLambda:
    """The numbers at one λ."""

    number: int  # λ in units of `Logged.unit`; the place in the grid where points have several coordinates
    lam: str
    values: Mapping[str, float]  # by `<task>/<metric>`, its interval's ends as `…_low` and `…_high`; and λ


@dataclass(frozen=True, slots=True)
class Logged:
    """Everything that is logged of a run."""

    name: str
    settings: Mapping[str, str]
    unit: str  # the λ that one step stands for, so that λ = step · unit; empty where a step is a place
    steps: tuple[AtLambda, ...]  # ascending
    summary: Mapping[str, str]  # λ* and the answer of each task and of the average
    files: Mapping[str, bytes]  # the files of RUN/report by name; figures are `figures/<name>.png` and `.svg`


def gather_logged(run: RunDir, analysis: "Analysis") -> Logged:
    """Gather what is logged of a run whose report is written.

    The numbers are those of all documents under confidence `sum`: the metrics that the terminal or the report shows, and
    lm-eval's own. Numbers that are not finite are left out.

    Raises:
        OSError: a file of the report cannot be read.
    """
    from calibration.report.identity import identity

    by_lam: dict[str, dict[str, float]] = {}
    for row in analysis.metrics.to_pylist():
        if row["split"] == "all" and row["confidence"] == "sum" and _is_shown(row["metric"]):
            key = f"{row['task']}/{row['metric'].replace(',', '.')}"
            ends = {key: "value", f"{key}_low": "ci_low", f"{key}_high": "ci_high"}
            values = {name: row[column] for name, column in ends.items() if _is_finite(row[column])}
            by_lam.setdefault(point_of(row), {}).update(values)
    lams = sorted(by_lam, key=order)
    digits = max((-int(Decimal(lam).as_tuple().exponent) for lam in lams if not is_named(lam)), default=0)
    named = any(map(is_named, lams))
    steps = tuple(
        AtLambda(place if named else int(Decimal(lam).scaleb(digits)), lam, _place(lam) | by_lam[lam])
        for place, lam in enumerate(lams)
    )
    frontiers = [*analysis.found.tasks, *analysis.found.pools]
    summary = {f"{one.task}/lambda_star": one.chosen.lam for one in frontiers}
    summary |= {f"{one.task}/answer": one.answer for one in frontiers}
    unit = "" if named else str(Decimal(1).scaleb(-digits))
    return Logged(run.root.name, dict(identity(analysis.sweep)), unit, steps, summary, _files(run))


def _is_shown(metric: str) -> bool:
    from calibration.catalogue import find
    from calibration.measured_rows import tool_of

    known = find(metric)
    return tool_of(metric) is not None or bool(known and known.name == metric and (known.column or known.drawn))


def _is_finite(value: Any) -> bool:
    return value is not None and abs(value) < float("inf")


def _place(lam: str) -> dict[str, float]:
    return {f"{LAM}_{name}" if name else LAM: float(one) for name, one in coordinates(lam).items()}


def _files(run: RunDir) -> dict[str, bytes]:
    figures = [f"figures/{name}" for name in sorted(names(run.figure("x").parent)) if name.endswith((".png", ".svg"))]
    folder = run.index_html.parent
    found = {}
    for name in ("index.html", "frontier.json", "metrics.csv", *figures):
        path = folder
        for part in name.split("/"):
            path = path / part
        found[name] = path.read_bytes()
    return found
