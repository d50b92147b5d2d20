"""A table of several runs, laid out for a terminal or for a file."""

from rich import box
from rich.table import Table
from rich.text import Text

from calibration.catalogue import answers
from calibration.comparison.gather import Comparison
from calibration.comparison.table import MISSING, compared_rows
from calibration.frontier.types import Value


def comparison_table(found: Comparison, title: str) -> Table:
    """Lay out λ* of each run, and its gain on aligned; with short names of runs the table fits into 80 columns."""
    rows = compared_rows(found, title)
    word = answers()[rows[0].frontier.metric].word
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    table.add_column("run", overflow="fold")
    for name in ("λ*", "accuracy", "NLL", word, "NLL\n−aligned"):
        table.add_column(name, justify="right", no_wrap=True)
        if name in ("λ*", "NLL\n−aligned"):
            table.add_column("95 %", no_wrap=True)
    table.add_column("docs", justify="right", no_wrap=True)
    for row in rows:
        chosen, star = row.frontier.chosen, row.star
        gain = row.gain.nll if row.gain else None
        table.add_row(
            *(Text(row.run), chosen.lam, Text(f"{chosen.low}–{chosen.high}", style="dim")),
            *(f"{value.value:z.3f}" for value in (star.accuracy, star.nll, star.error)),
            *(f"{gain.value:+z.3f}" if gain else MISSING, Text(_ends(gain) if gain else "", style="dim")),
            str(star.documents),
        )
    table.caption = Text(
        "λ*: lowest NLL among λs of nearly the best accuracy; its 95 %: of resamples; −aligned: on the same documents"
    )
    table.caption_justify = "left"
    return table


def _ends(value: Value) -> str:
    return "" if value.low is None or value.high is None else f"{value.low:+z.3f} to {value.high:+z.3f}"
