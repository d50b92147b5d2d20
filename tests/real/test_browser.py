"""In a real browser the report draws, follows its controls, fetches nothing, and fits a phone in light and dark."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.rundir import RunDir
from tests.support.reports import GRID, add_quiz, add_words, written
from tests.support.waiting import until

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
BARS = "#task-reliability-documents .mark-rect path"
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("report") / "run")
    add_quiz(run)
    add_quiz(run, """<script>alert(1)<script>"'&""", seed=1)
    add_words(run)
    written(run)
    return run.index_html


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Open the report at a size and in a colour scheme; whatever goes wrong while it is open fails the test."""
    contexts, wrong = [], []

    def open_page(size="desk", scheme="light"):
        width, height = SIZES[size]
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}") or dialog.dismiss())

        def gate(route):
            if route.request.url.startswith("file:"):
                route.continue_()
            else:
                wrong.append(f"request: {route.request.url}")
                route.abort()

        page.route("**/*", gate)
        page.goto(report.as_uri())
        until(lambda: page.query_selector(f"body[data-drawn={scheme}]"))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def paths(page, selector=BARS):
    return page.eval_on_selector_all(selector, "all => all.map(one => one.getAttribute('d'))")


def slide(page, place):
    page.eval_on_selector(
        "#lambda", "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", str(place)
    )
    until(lambda: page.text_content("#lambda-name") == GRID[place])
    # The figures follow the label; the title of this one names the λ, and its marks come with it.
    until(lambda: f"λ = {GRID[place]}," in page.text_content("#task-reliability-documents"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_figure_is_drawn_and_fits(opened, size, scheme):
    page = opened(size, scheme)
    figures = page.eval_on_selector_all(
        ".figure", "all => all.map(one => [one.id, one.querySelectorAll('svg path').length])"
    )
    assert len(figures) == 2 + 11 + 5 + 3 + 4 + 2
    assert [name for name, marks in figures if marks < 5] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    cut = page.eval_on_selector_all(
        ".figure svg",
        "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.parentElement.id)",
    )
    assert cut == []
    assert not re.search(
        r"NaN|undefined|\bnull\b", page.eval_on_selector_all("svg text", "all => all.map(t => t.textContent).join()")
    )


def test_the_slider_moves_the_diagrams(opened):
    page = opened()
    seen = []
    for place, lam in enumerate(GRID):
        slide(page, place)
        assert page.text_content("#lambda-name") == lam
        assert f"λ = {lam}, n = 40" in page.text_content("#task-reliability-documents")
        seen.append((tuple(paths(page)), tuple(paths(page, "#task-confidence-documents .mark-rect path"))))
        colour = page.eval_on_selector(BARS, "bar => bar.getAttribute('fill')")
        assert colour not in [one[2] for one in seen[:-1] if len(one) > 2]
        seen[-1] += (colour,)
    assert len({one[0] for one in seen}) == len(GRID)
    assert len({one[1] for one in seen}) == len(GRID)


def test_the_slider_works_from_the_keyboard(opened):
    page = opened()
    slide(page, 1)
    before = paths(page)
    page.focus("#lambda")
    page.keyboard.press("ArrowRight")
    until(lambda: page.text_content("#lambda-name") == GRID[2])
    assert page.get_attribute("#lambda", "aria-valuetext") == GRID[2]
    until(lambda: paths(page) != before)


def test_the_list_of_tasks_moves_all_figures(opened):
    page = opened()
    figures = ("#frontier-task", "#task-brier", "#task-reliability-documents")
    # The markup is shown as text, because a dialog would fail the test.
    assert "<script>alert(1)" in page.text_content("#frontier-task")
    before = [page.inner_html(figure) for figure in figures]
    page.select_option("#task", "quiz")
    until(lambda: all(one != page.inner_html(figure) for one, figure in zip(before, figures, strict=True)))
    assert page.text_content("#frontier-task").endswith("quiz")


def test_the_reader_changes_to_dark(opened):
    page = opened()
    light = page.eval_on_selector("#task-brier svg text", "text => text.getAttribute('fill')")
    slide(page, 3)
    page.emulate_media(color_scheme="dark")
    until(lambda: page.query_selector("body[data-drawn=dark]"))
    assert page.eval_on_selector("#task-brier svg text", "text => text.getAttribute('fill')") != light
    assert "λ = 1.5, n = 40" in page.text_content("#task-reliability-documents")  # the slider stays where it was


def test_a_table_is_copied(opened):
    page = opened()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("button.copy[data-table='numbers-1']")
    until(lambda: page.query_selector("button.copy:has-text('Copied')"))
    header, *rows = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert header.split("\t")[:4] == ["λ", "", "documents", "Accuracy"]
    assert [row.split("\t")[0] for row in rows] == list(GRID)


def test_a_report_without_anything_to_draw_opens(browser, tmp_path):
    run = RunDir(tmp_path / "run")
    add_quiz(run, scored=())
    written(run)
    page = browser.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(run.index_html.as_uri())
    until(lambda: page.query_selector("body[data-drawn]"))
    page.close()
    assert wrong == []
