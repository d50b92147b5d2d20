"""This module writes the answer of a sweep in a few sentences."""

from collections.abc import Mapping, Sequence

from calibration.catalogue import answers
from calibration.frontier.curve import MOST_LACKING
from calibration.frontier.held_out import in_points
from calibration.frontier.types import Chosen, FrontierPoint, Gain, Value
from contract.points import is_named

_ROUNDING = 1e-9


def sentence(
    point: FrontierPoint,
    chosen: Chosen,
    parents: Mapping[str, FrontierPoint],
    others: int,
    metric: str,
    scaled: Mapping[str, Value],
    macro: Mapping[str, Value],
    is_written: bool = False,
    lacking: Sequence[str] = (),
    apart: Sequence[str] = (),
    is_mixed: bool = False,
) -> str:
    """Say where λ* is, what it gains on each parent, and what the cheap alternative gives.

    "λ = 0.1 (no difference shown between 0 and 0.3; 300 documents). Against aligned: NLL −0.39 (−0.47 to −0.31), ECE 0.24 →
    0.07 (−0.22 to −0.09), accuracy +2.7 points (−1.3 to 6.7). Against base: no difference shown. The cheap alternative,
    aligned with a temperature: NLL 0.93, ECE 0.05; λ* has NLL 0.91, ECE 0.07."

    Args:
        point: what was measured at λ*.
        chosen: λ*, with the λs like it.
        parents: the points of the parents that there are, `base`, and `aligned` or each of several by its name.
        others: the number of λs besides λ*.
        metric: the name of the calibration error.
        scaled: `nll` and `error` of aligned after temperature scaling, if they are known.
        macro: `nll` and `brier` as means over the tasks, where this is of pooled tasks.
        is_written: whether this is of written answers, which are scaled after Platt.
        lacking: the λs that are compared with none, because too many of their outputs lack the confidence.
        apart: those that are compared with none, because they have scores of other documents.
        is_mixed: whether λs with scores of other documents are compared all the same.
    """
    word = answers()[metric].word
    where = chosen.lam if is_named(chosen.lam) else f"λ = {chosen.lam}"
    role = next((name for name, parent in parents.items() if parent.lam == point.lam), "")
    where += f", which is {role}" if role else ""
    said = [f"{where} ({_like(chosen, others)}{point.documents} documents)."]
    own = f"NLL {_number(point.nll.value)}, {word} {_number(point.error.value)}"
    if not point.gains:
        said.append(f"Accuracy {100 * point.accuracy.value:.1f} %, {own}.")
    for name in sorted(point.gains, key=lambda name: name == "base"):
        said.append(f"Against {name}: {_gain(point, point.gains[name], parents[name], word)}.")
    if scaled:
        parts = [
            f"{label} {_number(scaled[key].value)}" for key, label in (("nll", "NLL"), ("error", word)) if key in scaled
        ]
        how = "after Platt scaling" if is_written else "with a temperature"
        said.append(f"The cheap alternative, aligned {how}: {', '.join(parts)}; λ* has {own}.")
    if macro:
        said.append(
            f"{word} is of all documents pooled, where opposite errors of tasks cancel; as means over tasks, "
            f"NLL {_number(macro['nll'].value)}, Brier {_number(macro['brier'].value)}."
        )
    if lacking:
        share = f"more than {100 * MOST_LACKING:.0f} % of the outputs"
        said.append(f"Not compared: {_places(lacking)}, where {share} lack this confidence.")
    if apart:
        said.append(f"Not compared: {_places(apart)}, where other documents have scores than at most λs.")
    if is_mixed:
        said.append(
            "The λs have scores of different documents, and differ by that, too: `lambdasweep status` has the counts."
        )
    return " ".join(said)


def _places(lambdas: Sequence[str]) -> str:
    named = is_named(lambdas[0])
    return f"{'' if named else 'λ = '}{('; ' if named else ', ').join(lambdas)}"


def _like(chosen: Chosen, others: int) -> str:
    if not others:
        return ""
    if is_named(chosen.lam):
        return f"no difference shown to {len(chosen.like)} of {others} other points; "
    if chosen.like_low == chosen.like_high:
        return "unlike its neighbours; "
    return f"no difference shown between {chosen.like_low} and {chosen.like_high}; "


def _gain(point: FrontierPoint, gain: Gain, parent: FrontierPoint, word: str) -> str:
    if not any(map(_is_shown, (gain.accuracy, gain.nll, gain.error))):
        return "no difference shown"
    errors = f"{_number(parent.error.value)} → {_number(point.error.value)}"
    apart = point.error.value - parent.error.value
    if (
        abs(apart - gain.error.value) > _ROUNDING
    ):  # each has outputs that the other lacks, and the gain is of common ones
        errors = _signed(gain.error.value)
    return (
        f"NLL {_signed(gain.nll.value)}{_ends(gain.nll)}, {word} {errors}{_ends(gain.error)}, "
        f"accuracy {in_points(gain.accuracy.value)} points{_ends(gain.accuracy, 100, 1)}"
    )


def _is_shown(value: Value) -> bool:
    return value.low is not None and value.high is not None and (value.low > 0 or value.high < 0)


def _ends(value: Value, scale: float = 1, digits: int = 2) -> str:
    if value.low is None or value.high is None:
        return ""
    low, high = (_number(scale * end, digits) for end in (value.low, value.high))
    return f" ({low} to {high})"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:z.{digits}f}".replace("-", "−").replace("inf", "∞")


def _signed(value: float) -> str:
    return f"{value:+z.2f}".replace("-", "−").replace("inf", "∞")
