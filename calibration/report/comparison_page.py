"""The page of several runs lays them over each other and gives their numbers as tables to copy."""

from dataclasses import dataclass

from calibration.comparison.gather import Comparison
from calibration.comparison.table import as_latex, as_markdown, cells, compared_rows, header
from calibration.report.comparison_figures import comparison_figures
from calibration.report.document import document
from contract.commit import commit_bytes
from contract.location import Location


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """This is the table of a task, or of pooled tasks."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    markdown: str
    latex: str


def comparison_tables(found: Comparison) -> list[ComparisonTable]:
    """Return the table of each title."""
    made = []
    for title in found.titles:
        names, rows = header(found, title), tuple(cells(row) for row in compared_rows(found, title))
        made.append(ComparisonTable(title, names, rows, as_markdown(names, rows), as_latex(names, rows)))
    return made


def comparison_page(found: Comparison) -> str:
    """Return the page as HTML. Equal comparisons give equal text."""
    sections = comparison_figures(found)
    return document(
        "comparison.html",
        {name: chart for section in sections.values() for name, chart in section.items()},
        found=found,
        charts=sections,
        tables=comparison_tables(found),
        margin=f"{100 * found.margin:g}",
    )


def write_comparison(found: Comparison, path: Location) -> None:
    """Commit the page of a comparison.

    Raises:
        OSError: the disk is full or not writable; what was there before is left as it was.
    """
    commit_bytes(path, comparison_page(found).encode())
