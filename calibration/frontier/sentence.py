"""The answer of a sweep in one sentence."""

from collections.abc import Mapping

from calibration.catalogue import answers
from calibration.frontier.types import Chosen, FrontierPoint
from contract.points import is_named

SIGNIFICANT = 0.05


def sentence(
    point: FrontierPoint, chosen: Chosen, parents: Mapping[str, FrontierPoint], others: int, metric: str
) -> str:
    """Say where λ* is, what it gains, and how sure that is.

    "λ = 0.62 (0.55–0.7): accuracy +1.9 points over aligned, ECE 0.18 → 0.07; not distinguishable from 0.58–0.68"

    Over several aligned checkpoints:

    "dpo=0.5,sft=0.25: accuracy +1.9 points over base, ECE 0.18 → 0.07; not distinguishable from 3 of 8 other points"

    Args:
        point: what was measured at λ*, on the documents that had no say in choosing it.
        chosen: λ*, with its interval and the λs like it.
        parents: the points of the parents that there are, `base`, and `aligned` or each of several by its name; λ* is
            compared with aligned, or with base where there is no aligned.
        others: the number of λs besides λ*.
        metric: the name of the calibration error.
    """
    is_point = is_named(chosen.lam)
    where = chosen.lam if is_point else f"λ = {chosen.lam}"
    if (chosen.low, chosen.high) != (chosen.lam, chosen.lam):
        where += f" ({_span(chosen.low, chosen.high)})"
    name = next((name for name in ("aligned", "base") if name in parents), None)
    error = answers()[metric].word
    if name is None or parents[name].lam == point.lam:
        role = f", which is {name}" if name else ""
        what = f"accuracy {100 * point.accuracy.value:.1f} %, {error} {point.error.value:.2f}"
        where += role
    else:
        parent = parents[name]
        points = f"{100 * point.gains[name].accuracy.value:+.1f}".replace("-", "−").replace("−0.0", "+0.0")
        what = f"accuracy {points} points over {name}, {error} {parent.error.value:.2f} → {point.error.value:.2f}"
    better = [
        word
        for word, p in (("accuracy", point.p_accuracy), (error, point.p_error))
        if p is not None and p <= SIGNIFICANT
    ]
    sure = f"; better than {'all' if is_point else 'both'} parents in {' and '.join(better)}" if better else ""
    like = f"; not distinguishable from {_span(chosen.like_low, chosen.like_high)}"
    if chosen.like_low == chosen.like_high:
        like = "; distinguishable from its neighbours" if others else ""
    if is_point:
        which = f"{len(chosen.like)} of {others}" if chosen.like else f"all {others}"
        like = f"; {'not ' if chosen.like else ''}distinguishable from {which} other points" if others else ""
    return f"{where}: {what}{sure}{like}"


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}" if "-" in low + high else f"{low}–{high}"
