"""What is better than the parents is tested on documents that had no say in which λ is tested.

The λ is chosen by the rule of λ* on `select` and tested on `report`, against each parent at 5 %. One λ is tested, so there
is nothing to adjust for; to be better than both parents it must pass both tests, which errs on the safe side.
"""

from collections.abc import Mapping

import numpy as np

from calibration.arrays import Ints
from calibration.catalogue import answers
from calibration.frontier.curve import Curve, stacked
from calibration.frontier.lambda_star import choose
from calibration.frontier.types import Claim, HeldOut, ParentTest, Value, Verdict
from calibration.uncertainty.intervals import Estimate, interval
from calibration.uncertainty.multiple_tests import step_down
from contract.points import is_named

SIGNIFICANT = 0.05
FAR = 0.5  # "far better calibrated" is an error below this share of aligned's


def measured(estimate: Estimate, metric: str) -> Value:
    """Return an estimate with its interval; `metric` is its name, or `…_vs_parent` for a difference."""
    found = interval(estimate, metric)
    return Value(estimate.value, found.low if found else None, found.high if found else None)


def held_out(curve: Curve, margin: float, among: Ints | None = None) -> HeldOut:
    """Choose a λ on `select` and test it on `report` against each other parent that the curve has.

    Args:
        curve: the curve.
        margin: as `lambda_star.choose` takes it.
        among: the places of the candidates; all λs where it is not given.
    """
    candidates = np.arange(len(curve.lambdas)) if among is None else among
    place = int(candidates[choose(curve.tracks["select"].at(candidates), margin)])
    report = curve.tracks["report"]
    tests = []
    for name, parent in curve.places.items():
        if parent == place:
            continue
        for metric, of, sign in (
            ("accuracy", report.accuracy, 1.0),
            ("nll", report.nll, -1.0),
            ("error", report.error, -1.0),
        ):
            difference = of[place].minus(of[parent])
            label = f"{curve.metric if metric == 'error' else metric}_vs_parent"
            better, worse = _p(of[place], of[parent], sign), _p(of[place], of[parent], -sign)
            tests.append(ParentTest(name, metric, measured(difference, label), better, worse))  # type: ignore[arg-type]
    return HeldOut(curve.lambdas[place], report.accuracy[place].n, tuple(tests))


def claim_of(curve: Curve, margin: float) -> Claim | None:
    """Tell whether a λ between the parents is better than both, as the paper [arXiv 2510.17426] says.

    The claim is "more accurate than all parents, and an error of less than half of aligned's". The verdict is yes where
    every part of it is shown at 5 %; no where the opposite of a part is shown, that is, less accuracy than a parent or a
    larger error than aligned's; and else not shown.

    Returns:
        The claim; None where a parent is missing, or no λ lies between them.
    """
    places = curve.places
    if "base" not in places or len(places) < max(2, len(curve.parents)):
        return None
    between = np.array([i for i, lam in enumerate(curve.lambdas) if _is_between(lam, i, places)], np.intp)
    if not len(between):
        return None
    found = held_out(curve, margin, between)
    place = curve.lambdas.index(found.lam)
    error = curve.tracks["report"].error
    halves = {name: _p(error[place], error[p], -1.0, FAR) for name, p in places.items() if name != "base"}
    of_accuracy = [one for one in found.tests if one.metric == "accuracy"]
    of_error = [one for one in found.tests if one.metric == "error" and one.parent != "base"]
    verdict: Verdict = "not shown"
    if any(one.p_worse <= SIGNIFICANT for one in (*of_accuracy, *of_error)):
        verdict = "no"
    elif all(p <= SIGNIFICANT for p in (*(one.p for one in of_accuracy), *halves.values())):
        verdict = "yes"
    return Claim(verdict, _text(curve, found, verdict, halves), found, halves)


def _is_between(lam: str, place: int, parents: Mapping[str, int]) -> bool:
    return place not in parents.values() and (is_named(lam) or 0 < float(lam) < 1)


def _p(one: Estimate, other: Estimate, sign: float, share: float = 1.0) -> float:
    """Return the p-value of sign · (one − share · other) > 0, by the studentised bootstrap."""
    (value, drawn), (other_value, other_drawn) = stacked([one], [other])
    gain = sign * (value - share * other_value)
    return float(step_down(gain, sign * (drawn - share * other_drawn))[0])


def _text(curve: Curve, found: HeldOut, verdict: Verdict, halves: Mapping[str, float]) -> str:
    where = found.lam if is_named(found.lam) else f"λ = {found.lam}"
    both = "all parents" if len(curve.parents) > 2 else "both parents"
    aligned = " and ".join(halves)
    word = answers()[curve.metric].word
    place = curve.lambdas.index(found.lam)
    error = curve.tracks["report"].error
    parts = []
    for one in found.tests:
        if one.metric == "accuracy":
            parts.append(f"accuracy {in_points(one.difference.value)} points against {one.parent} ({p_text(one.p)})")
    for name, p in halves.items():
        own, theirs = error[place].value, error[curve.places[name]].value
        parts.append(f"{word} {theirs:.2f} → {own:.2f} against {name} (below half: {p_text(p)})")
    return (
        f"Between the parents, more accurate than {both} and far better calibrated than {aligned}: {verdict}. {where}, "
        f"chosen on the other half of the documents, has on {found.documents} documents {', '.join(parts)}."
    )


def p_text(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def in_points(share: float) -> str:
    """Return a difference in accuracy in points, with its sign."""
    return f"{100 * share:+z.1f}".replace("-", "−")
