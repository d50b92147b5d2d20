"""This module writes everything in RUN/report."""

import csv
import io
import re

import pyarrow as pa
import vl_convert

from calibration.analyse import Analysis, write_bins
from calibration.catalogue import ERROR
from calibration.frontier.frontier import write_frontiers
from calibration.report.facts import gather
from calibration.report.figures import paper_figures
from calibration.report.identity import history_record, quarantine
from calibration.report.page import page
from calibration.report.style import theme
from calibration.report.vega import Spec
from calibration.samples_at_lambda import by_lambda
from calibration.scores.per_document import CONFIDENCES
from contract.commit import commit_bytes
from contract.grid import canonical
from contract.rundir import RunDir, names

# The first font comes with the converter, so that figures look the same on every machine.
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_PPI = 200.0
# This says which version of Vega-Lite the figures are written for.
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


def write_report(
    run: RunDir,
    analysis: Analysis,
    error: str = ERROR,
    confidence: str = CONFIDENCES[0],
    figures: bool = False,
) -> None:
    """Commit report/index.html, frontier.json, bins.parquet and metrics.csv, and each of figures/ as SVG, PNG and PDF.

    Equal tables of equal sweeps give equal bytes: the files hold no time, no host, and no path but those that were recorded.
    PDFs are the exception: their writer puts the same objects down in any order.

    Args:
        run: the run.
        analysis: the run's analysis, made with `error` and `confidence`.
        error: the calibration error that accuracy is held against.
        confidence: the confidence of that error and accuracy.
        figures: whether to write the figures for a paper, which takes most of the time; else those of an earlier report are
            removed, because they would show other numbers than the page.

    Raises:
        OSError: the disk is full or not writable; what was there before is left as it was.
    """
    facts = gather(analysis, error, confidence)
    write_frontiers(run, analysis.found, by_lambda(analysis.metrics))
    write_bins(run, analysis)
    commit_bytes(run.metrics_csv, _csv(analysis.metrics))
    charts = paper_figures(facts) if figures else {}
    for name, chart in charts.items():
        svg = _svg(chart)
        commit_bytes(run.figure(f"{name}.svg"), svg.encode())
        commit_bytes(run.figure(f"{name}.png"), vl_convert.svg_to_png(svg, ppi=_PPI))
        commit_bytes(run.figure(f"{name}.pdf"), vl_convert.svg_to_pdf(svg))
    kept = {f"{name}.{ending}" for name in charts for ending in ("svg", "png", "pdf")}
    for name in set(names(run.figure("any").parent)) - kept:
        run.figure(name).unlink(missing_ok=True)
    html = page(
        facts,
        analysis.sweep,
        analysis.plan,
        quarantine(run, analysis.plan),
        list(charts),
        analysis.found.margin,
        history_record(*run.history()),
    )
    commit_bytes(run.index_html, html.encode())


def _svg(chart: Spec) -> str:
    svg: str = vl_convert.vegalite_to_svg(chart | {"$schema": _SCHEMA, "config": theme("light", _FONT)})
    # Vega numbers the gradients through the whole process, so they are numbered anew in each figure.
    numbers: dict[str, str] = {}
    return re.sub(r"\bgradient_\d+\b", lambda match: numbers.setdefault(match[0], f"gradient_{len(numbers)}"), svg)


def _csv(metrics: pa.Table) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(metrics.column_names)
    columns = [_texts(metrics[name]) for name in metrics.column_names]
    writer.writerows(zip(*columns, strict=True))
    return sink.getvalue().encode()


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Return λs by their names and other numbers to seven digits; metrics.parquet has the exact numbers."""
    form = (
        canonical if pa.types.is_decimal(column.type) else "{:.7g}".format if pa.types.is_floating(column.type) else str
    )
    return ["" if value is None else form(value) for value in column.to_pylist()]
