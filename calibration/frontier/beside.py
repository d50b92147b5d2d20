"""Beside λ* stand the parents, and what can be had of both without merging them. Tables of every kind show these rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from calibration.catalogue import answers
from calibration.frontier.curve import TEMPERATURE
from calibration.frontier.frontier import Frontier
from calibration.frontier.types import Rival, Value
from contract.points import is_named

TITLES: Mapping[str, str] = {
    TEMPERATURE: "aligned, temperature",
    "daca": "aligned, DACA temperature",
    "mean": "ensemble, mean",
    "log-mean": "ensemble, log-mean",
}
HELP: Mapping[str, str] = {
    TEMPERATURE: "a temperature fitted to the right answers of the other half of the documents",
    "daca": (
        "a temperature that brings aligned's confidence to base's on the other half, where both predict the same; "
        "no right answer is used"
    ),
    "mean": "the mean of both parents' probabilities; both models run",
    "log-mean": "the geometric mean of both parents' probabilities, renormalised; both models run",
}
GAIN = "NLL of λ* less its"


@dataclass(frozen=True, slots=True)
class Beside:
    """One row: λ*, a parent, or a rival."""

    label: str
    fitted: str  # the temperatures of both halves, where it has any
    documents: int
    accuracy: Value
    nll: Value
    error: Value
    gain: (
        Value | None
    )  # the NLL of λ* less its NLL, on the same documents: below 0 λ* is better; None for λ*, and on other documents


def header(found: Frontier) -> tuple[str, ...]:
    """Return the titles of the columns after the label's."""
    return ("accuracy", "NLL", answers()[found.metric].word, GAIN)


def beside(found: Frontier) -> list[Beside]:
    """Return the rows of a frontier: λ*, the parents that it is not, and the rivals."""
    by_lam = {point.lam: point for point in found.points}
    star = by_lam[found.chosen.lam]
    where = star.lam if is_named(star.lam) else f"λ* = {star.lam}"
    role = next((name for name, lam in found.parents.items() if lam == star.lam), "")
    rows = [
        Beside(f"{where}, {role}" if role else where, "", star.documents, star.accuracy, star.nll, star.error, None)
    ]
    for name, gain in star.gains.items():
        one = by_lam[found.parents[name]]
        rows.append(Beside(name, "", one.documents, one.accuracy, one.nll, one.error, gain.nll))
    for rival in found.rivals:
        gained = rival.gain.nll if rival.gain else None
        rows.append(
            Beside(TITLES[rival.name], _fitted(rival), rival.documents, rival.accuracy, rival.nll, rival.error, gained)
        )
    return rows


def text_of(value: Value, form: str = ".3f") -> str:
    """Return a number with its interval: `0.623 [0.569, 0.678]`."""
    if value.low is None or value.high is None:
        return f"{value.value:z{form}}"
    return f"{value.value:z{form}} [{value.low:z{form}}, {value.high:z{form}}]"


def markdown(found: Frontier) -> list[str]:
    """Return the rows as the lines of a Markdown table."""
    titles = ("", *header(found))
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in beside(found):
        cells = [row.label, *map(text_of, (row.accuracy, row.nll, row.error)), text_of(row.gain) if row.gain else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def notes(several: Iterable[Frontier]) -> list[str]:
    """Say once what each rival of some frontiers is made of, with its temperatures, or the range of them."""
    rivals = [rival for found in several for rival in found.rivals]
    lines = []
    for name, title in TITLES.items():
        named = [rival for rival in rivals if rival.name == name]
        if not named:
            continue
        every = [one for rival in named for one in rival.temperatures]
        between = f"{min(every):.2f} to {max(every):.2f}" if every else ""
        fitted = _fitted(named[0]) if len(named) == 1 else between
        lines.append(f"{title}: {HELP[name]}{f' ({fitted})' if fitted else ''}")
    return lines


def _fitted(rival: Rival) -> str:
    return " and ".join(f"{one:.2f}" for one in rival.temperatures)
