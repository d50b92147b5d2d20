"""This makes runs whose numbers have a known shape, and their reports."""

import contextlib
import functools
import hashlib
import math

import altair as alt
import numpy as np
import pytest
from jsonschema.validators import validator_for

from calibration.analyse import analyse
from calibration.report.write import write_report
from tests.support.tables import add_scores, add_task

GRID = ("0", "0.5", "1", "1.5")
MARKUP = """<script>alert("1")<script> & "'><img src=x onerror=alert(2)> {{ 7 }}"""  # a name that a task may have


def add_quiz(run, task="quiz", documents=40, grid=GRID, scored=None, sure=2.0, seed=0):
    """Write a choice task whose λs are ever surer of the same answers, of which three of four are right."""
    rng = np.random.default_rng(seed)
    add_task(run, task, [2] * documents, grid)
    right = rng.random(documents) < 0.75
    noise = rng.normal(size=documents)
    for lam in grid if scored is None else scored:
        gaps = (sure * float(lam) + 0.5 + 0.3 * np.abs(noise)) * np.where(right, 1, -1)
        scores = {
            2 * d + c: [float(-math.log1p(math.exp(gaps[d] if c else -gaps[d])))]
            for d in range(documents)
            for c in (0, 1)
        }
        add_scores(run, task, lam, scores, top1={r: [5 if r % 4 else 6] for r in scores})


def add_words(run, task="words", documents=6, grid=GRID):
    """Write a continuation task."""
    add_task(run, task, [1] * documents, grid)
    for lam in grid:
        add_scores(
            run,
            task,
            lam,
            {d: [-1.0 - float(lam) - 0.1 * d] for d in range(documents)},
            top1={d: [5] for d in range(0, documents, 2)},
        )


_ANALYSES = {}
_TELLS_OF_COMMANDS = {".lock", "driver.json", "history.json", "receipts", "report", "metrics.parquet"}


def analyse_once(run, **options):
    """Return a run's analysis, or that of an earlier run with the same files and options, of which it is a function.

    It is not for tests that put something else in the place of what computes it.
    """
    digest = hashlib.sha256(
        repr(sorted((name, options[name]) for name in options.keys() - {"asked", "sweep"})).encode()
    )
    for path in sorted(run.root.rglob("*")):
        if path.is_file() and not _TELLS_OF_COMMANDS & set(path.relative_to(run.root).parts):
            digest.update(f"{path.relative_to(run.root)} {path.stat().st_size} ".encode() + path.read_bytes())
    key = digest.digest()
    if key in _ANALYSES:
        return _ANALYSES[key]
    found = analyse(run, **options)
    if not found.damaged:  # the run is told of damage, each time
        _ANALYSES[key] = found
    return found


def analysed(run):
    return analyse_once(run, resamples=60)


def written(run, figures=False):
    """Write the report and return its page, with empty figures if they are asked for."""
    with undrawn():
        write_report(run, analysed(run), figures=figures)
    return run.index_html.read_text(encoding="utf-8")


def drawn(run, pngs=False):
    """Write the report with its figures, as SVGs, and as PNGs and PDFs if asked for."""
    with contextlib.nullcontext() if pngs else svgs_only():
        write_report(run, analysed(run), figures=True)


@contextlib.contextmanager
def svgs_only():
    """Leave PNGs and PDFs empty: they show what the SVGs show, and drawing them takes most of a report's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl_convert.svg_to_png", lambda svg, ppi: b"")
        patch.setattr("vl_convert.svg_to_pdf", lambda svg: b"")
        yield


@contextlib.contextmanager
def undrawn():
    """Leave all figures empty: a browser's engine draws them, which takes a tenth of a second for each."""
    with svgs_only(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl_convert.vegalite_to_svg", lambda chart: "")
        yield


@functools.cache
def vega_lite():
    """Return the validator of charts: altair has a copy of the schema of Vega-Lite."""
    schema = alt.load_schema()
    return validator_for(schema)(schema)
