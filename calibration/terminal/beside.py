"""A table of λ*, the parents and the rivals, laid out for a terminal or for a file."""

import re

from rich import box
from rich.table import Table
from rich.text import Text

from calibration.frontier.beside import GAIN, beside, header
from calibration.frontier.frontier import Frontier
from calibration.frontier.types import Value


def beside_table(found: Frontier, intervals: bool = False) -> Table | None:
    """Lay out a frontier's λ* and what stands beside it; None where no rival does. The table fits into 80 columns.

    What the rivals are, `calibration.frontier.beside.notes` says once for all tables.

    Args:
        found: the frontier.
        intervals: whether the intervals of accuracy, NLL and error are shown, too; then it takes 100 columns.
    """
    if not found.rivals:
        return None
    title = Text(f"{found.task}: λ* and what needs no merging", style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    table.add_column("")
    shown = (*header(found)[:-1], GAIN.replace(" less", "\nless"))
    for place, name in enumerate(shown):
        table.add_column(name, justify="right", no_wrap=True)
        if intervals or place == len(shown) - 1:
            table.add_column("95 %", no_wrap=True)
    for row in beside(found):
        cells = []
        for value in (row.accuracy, row.nll, row.error, row.gain):
            form = "+z.3f" if value is row.gain else "z.3f"
            cells.append(Text(f"{value.value:{form}}" if value else "–"))
            if intervals or value is row.gain:
                ends = _ends(value, " to " if value is row.gain else "–") if value else ""
                cells.append(Text(ends, style="dim"))
        table.add_row(Text(row.label), *cells)
    return table


def _ends(value: Value, between: str) -> str:
    if value.low is None or value.high is None:
        return ""
    return between.join(re.sub(r"^(-?)0\.", r"\1.", f"{end:z.3f}") for end in (value.low, value.high))
