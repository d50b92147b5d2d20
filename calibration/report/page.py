"""The page is one HTML file that opens from the disk: styles, scripts, data and the plotting library are all inside."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

import vl_convert
from jinja2 import Environment
from markupsafe import Markup

from calibration.catalogue import answers
from calibration.frontier.lambda_star import MARGIN
from calibration.report.facts import Facts
from calibration.report.figures import page_figures
from calibration.report.identity import Quarantined, identity, task_records
from calibration.report.notices import notices
from calibration.report.numbers import numbers
from calibration.report.rivals import rival_tables
from calibration.report.style import theme
from calibration.report.vega import Spec
from contract.formula import formula
from contract.points import ONLY
from contract.records import LineRecord, ParentRecord, Plan, SweepRecord

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class ParentNames:
    """The names that a page calls the pair by."""

    base: str
    aligned: str


def page(
    facts: Facts,
    sweep: SweepRecord,
    plan: Plan,
    quarantined: list[Quarantined],
    figures: list[str],
    margin: float = MARGIN,
) -> str:
    """Return the page as HTML. Equal arguments give equal text.

    Args:
        facts: the facts that are drawn.
        sweep: the record of sweep.json.
        plan: the tasks of plan.json.
        quarantined: the run's requests that could not be scored, by task and reason.
        figures: the names of the files in figures/, without their endings.
        margin: the accuracy that λ* may give up, as a share of documents.
    """
    charts = page_figures(facts)
    datasets: dict[str, str] = {}
    specs = {name: _spec(chart, datasets) for section in charts.values() for name, chart in section.items()}
    bundle, script = Markup(_bundle()), Markup(_file("page.js"))
    data = {"specs": specs, "datasets": datasets, "themes": {name: theme(name, _FONT) for name in ("light", "dark")}}
    # A task's name cannot become markup: jinja2 escapes it in HTML, and the JSON has no "<" at all.
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_file("page.html"))
    return template.render(
        parents=_parents(sweep.pair),
        formula=_formula(sweep.line or LineRecord(), facts.coordinates),
        facts=facts,
        margin=f"{100 * margin:g}",
        error_title=answers()[facts.error].title,
        notices=list(notices(facts)),
        charts=charts,
        rivals=rival_tables(facts),
        numbers=numbers(facts),
        identity=identity(sweep),
        task_records=task_records(plan),
        quarantined=quarantined,
        paper=figures,
        style=Markup(_file("page.css")),
        bundle=bundle,
        script=script,
        data=Markup(_json(data)),
        # Only these two scripts run, whatever else is in the page, and nothing is fetched. Vega makes functions of its
        # expressions ('unsafe-eval'), and no expression holds text of a task.
        hashes=[_digest(bundle), _digest(script)],
    )


def _spec(chart: Spec, datasets: dict[str, str]) -> Spec:
    """Return a chart with its data moved into `datasets`, where they are known by their content.

    Data that two figures show is in the page once.
    """
    values: str = chart["data"]["values"]
    name = "data-" + hashlib.sha256(values.encode()).hexdigest()[:16]
    datasets[name] = values
    return chart | {"width": "container", "data": {"name": name, "format": chart["data"]["format"]}}


def _parents(pair: Mapping[str, ParentRecord]) -> ParentNames:
    aligned = [_short(pair[role]) for role in sorted(pair.keys() - {"base"})]
    return ParentNames(_short(pair["base"]), ", ".join(aligned))


def _formula(line: LineRecord, names: Sequence[str]) -> str:
    lams = {name: f"λ_{name}" for name in names} or {ONLY: "λ"}
    return f"{'θ' if names else 'θ(λ)'} = {formula(line.method, lams, bool(line.lam_map))}"


def _short(parent: ParentRecord) -> str:
    return PurePath(parent.source).name or parent.source


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _bundle() -> str:
    """The plotting library as one script, which takes a second to put together."""
    bundle: str = vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;")
    return bundle


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files("calibration.report").joinpath(name).read_text(encoding="utf-8")
