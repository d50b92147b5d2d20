"""The page has a table of λ*, the parents and the rivals for each frontier."""

from dataclasses import dataclass

from calibration.frontier.beside import beside, header, notes, text_of
from calibration.report.facts import Facts


@dataclass(frozen=True, slots=True)
class RivalTable:
    """This is the table of one frontier."""

    task: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def rival_tables(facts: Facts) -> list[RivalTable]:
    """Return the table of each frontier that has rivals."""
    found = []
    for name, frontier in facts.frontiers:
        if not frontier.rivals:
            continue
        rows = beside(frontier)
        cells = tuple(
            (
                *(f"{row.label} ({row.fitted})" if row.fitted else row.label, str(row.documents)),
                *(text_of(value, ".4f") if value else "–" for value in (row.accuracy, row.nll, row.error, row.gain)),
            )
            for row in rows
        )
        found.append(RivalTable(name, ("", "documents", *header(frontier)), cells))
    return found


def rival_notes(facts: Facts) -> list[str]:
    """Say what each rival is made of, once for all tables."""
    return [f"{note}." for note in notes(frontier for _, frontier in facts.frontiers)]
