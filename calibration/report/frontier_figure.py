"""This figure draws accuracy against calibration error: every λ, the parents, λ* and the frontier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.catalogue import answers
from calibration.frontier.frontier import Frontier
from calibration.frontier.types import FrontierPoint, Value
from calibration.report.controls import OF_STOP
from calibration.report.data import chart_data
from calibration.report.facts import Cell, Facts
from calibration.report.style import HALO, NEUTRAL, ROLES, lam_colour, number, role_shape
from calibration.report.vega import Spec, end, mark, nominal, quantitative

_COLUMNS = (
    *("task", "lambda", "lam", "point", "role", "label", "x", "x_low", "x_high", "y", "y_low", "y_high"),
    *("member", "chosen", "marked", "below", "left", "documents", "membership", "interval"),
)
_PADDING = 14  # pixels around the points
_BESIDE = {
    "dx": {"expr": "datum.left ? -8 : 8"},
    "dy": {"expr": "datum.below ? 15 : -9"},
    "align": {"expr": "datum.left ? 'right' : 'left'"},
    "fontSize": 11,
}
_LETTER = (0.018, 0.05)  # the width and height of a letter, as fractions of the figure's


def frontier_rows(facts: Facts, title: str, frontier: Frontier) -> Iterator[dict[str, Any]]:
    """Yield one row per λ of a frontier, and one for aligned after temperature scaling if it has the same error."""
    scaled = _scaled(facts, title, frontier)
    others = [] if scaled is None else [(scaled[1].plottable or 0.0, scaled[0].plottable or 0.0)]
    labels = _labels(facts, frontier, others)
    for point in frontier.points:
        role, chosen = facts.mark_of(point.lam), point.lam == frontier.chosen.lam
        marked = chosen or role != "other λ"
        yield _row(title, point) | {
            "point": facts.stop(point.lam),
            "role": role,
            **labels.get(point.lam, {"label": "", "below": 0, "left": 0}),
            "member": int(point.on_frontier),
            "chosen": int(chosen),
            "marked": int(marked),
        }
    if scaled is not None:
        accuracy, error = scaled
        yield {
            **{"task": title, "lambda": "1, temperature-scaled", "lam": 1.0, "point": -1, "role": ROLES[3]},
            **{"x": error.plottable, "x_low": error.low, "x_high": error.high, "label": ""},
            **{"y": accuracy.plottable, "y_low": accuracy.low, "y_high": accuracy.high, "member": 0, "chosen": 0},
            **{"marked": 1, "documents": accuracy.n, "membership": None, "interval": ""},
        }


def frontier_chart(facts: Facts, rows: list[dict[str, Any]], follows: bool = False) -> Spec:
    """Draw frontiers.

    Args:
        facts: the run.
        rows: what `frontier_rows` yields for one title or for several.
        follows: whether the λ of the slider is marked.
    """
    error = answers()[facts.error].title
    # The padding keeps the ends of intervals and the labels inside; titles of two lines fit a phone.
    room = {"zero": False, "nice": False, "padding": _PADDING}
    x = quantitative("x", title=[error, "0 to 1, lower is better"], scale=room)
    y = quantitative("y", title=["accuracy", "share of documents, higher is better"], scale=room)
    at, text = {"x": x, "y": y}, {"x": x, "y": y, "text": nominal("label")}
    colour, explained = lam_colour(facts.every_lam), lam_colour(facts.every_lam, legend=True)
    points = at | {
        **{"color": colour, "shape": role_shape([role for role in ROLES if role in {row["role"] for row in rows}])},
        "tooltip": [
            nominal("lambda", title="λ"),
            quantitative("y", title="accuracy", format=".4f"),
            quantitative("x", title="error", format=".4f"),
            nominal("interval", title="95 %"),
            quantitative("membership", title="on the frontier in", format=".0%"),
            quantitative("documents", title="documents", format="d"),
        ],
    }
    along = mark(
        "line",
        at | {"order": quantitative("lam")},
        ["datum.role !== 'aligned, temperature-scaled'"],
        **{"color": NEUTRAL, "strokeWidth": 1, "opacity": 0.7},
    )
    front = mark(
        "line",
        at | {"order": quantitative("x")},
        ["datum.member === 1"],
        **{"color": NEUTRAL, "strokeWidth": 3, "opacity": 0.55, "interpolate": "step-after"},
    )
    hollow = mark("point", points, ["datum.member === 0"], size=55, filled=False, strokeWidth=1.8, opacity=1)
    full = mark("point", points | {"color": explained}, ["datum.member === 1"], size=110, filled=True, opacity=1)
    layers = [
        *([] if facts.coordinates else [along]),  # points of several coordinates have no order
        front,
        *_cross("datum.marked === 1", colour, 0.75),
        *(_cross(OF_STOP, colour, 1.0) if follows else ()),
        *(hollow, full),
        mark("point", at, ["datum.chosen === 1"], size=330, color=NEUTRAL, strokeWidth=2),
        # One layer draws the labels of all places, because a layer without points would leave the axes without an extent.
        *(mark("text", text, ["datum.label"], **style, **_BESIDE) for style in ({"style": HALO}, {})),
    ]
    if follows:
        layers.append(mark("point", at, [OF_STOP], size=420, strokeWidth=1, strokeDash=[3, 2], color=NEUTRAL))
    # Hollow points have their colour on the stroke, and a legend of hollow and filled points could not be a gradient.
    resolve = {"legend": {"color": "independent"}}
    return {"data": chart_data(rows, _COLUMNS), "layer": layers, "resolve": resolve}


def _labels(facts: Facts, frontier: Frontier, others: Sequence[tuple[float, float]]) -> dict[str, dict[str, Any]]:
    """Return `label`, and whether it is `below` and `left` of its point, by λ.

    Parents and λ* have one, on a side of their points where no other point is, if there is one. Then come the frontier
    and the rest, above and to the right, where a label covers neither a point nor another label.

    Args:
        facts: the run.
        frontier: the frontier that is drawn.
        others: the error and the accuracy of all other points that are drawn.
    """
    words = {lam: name if facts.coordinates else f"{lam} {name}" for name, lam in facts.parents.items()}
    star = frontier.chosen.lam
    words[star] = f"{words.get(star, star)} λ*"
    points = sorted(frontier.points, key=lambda point: (point.lam not in words, not point.on_frontier))
    width, height = _span([one.error for one in points]), _span([one.accuracy for one in points])
    dots = [(one.error.value / width, one.accuracy.value / height) for one in points]
    dots += [(error / width, accuracy / height) for error, accuracy in others]
    kept: list[_Box] = []
    found: dict[str, dict[str, Any]] = {}
    for point in points:
        label = words.get(point.lam, point.lam)
        dot = point.error.value / width, point.accuracy.value / height
        boxes = {place: _box(dot, len(label), *place) for place in _PLACES[: None if point.lam in words else 1]}
        hidden = {
            place: sum(box.holds(*one) for one in dots if one != dot) + 2 * sum(map(box.meets, kept))
            for place, box in boxes.items()
        }
        place = min(hidden, key=hidden.__getitem__)  # the first one of equally good places is taken
        if point.lam in words or not hidden[place]:
            kept.append(boxes[place])
            found[point.lam] = {"label": label, "below": int(place[0]), "left": int(place[1])}
    return found


# A label may stand at these places, the best first: (below its point, left of it).
_PLACES = ((False, False), (True, False), (False, True), (True, True))


@dataclass(frozen=True, slots=True)
class _Box:
    """This is the place of a label, in fractions of the figure."""

    left: float
    right: float
    bottom: float
    top: float

    def holds(self, across: float, up: float) -> bool:
        return self.left < across < self.right and self.bottom < up < self.top

    def meets(self, other: "_Box") -> bool:
        apart = self.left >= other.right or other.left >= self.right
        return not (apart or self.bottom >= other.top or other.bottom >= self.top)


def _box(dot: tuple[float, float], letters: int, below: bool, left: bool) -> _Box:
    long, high = _LETTER[0] * (letters + 1), _LETTER[1]
    begin, bottom = dot[0] - (long if left else 0.0), dot[1] - (1.6 * high if below else -0.2 * high)
    return _Box(begin, begin + long, bottom - 0.2 * high, bottom + 1.2 * high)


def _span(values: list[Value]) -> float:
    ends = [side for one in values for side in (one.value, one.low, one.high) if side is not None]
    return (max(ends) - min(ends)) or 1.0


def _cross(predicate: str, colour: Spec, opacity: float) -> tuple[Spec, Spec]:
    across = {"x": quantitative("x_low"), "x2": end("x_high"), "y": quantitative("y"), "color": colour}
    up = {"x": quantitative("x"), "y": quantitative("y_low"), "y2": end("y_high"), "color": colour}
    return (
        mark("rule", across, [predicate], strokeWidth=1.4, opacity=opacity),
        mark("rule", up, [predicate], strokeWidth=1.4, opacity=opacity),
    )


def _row(title: str, point: FrontierPoint) -> dict[str, Any]:
    accuracy, error = point.accuracy, point.error
    ends = [side for side in (accuracy.low, accuracy.high, error.low, error.high) if side is not None]
    interval = "accuracy {:.3f}–{:.3f}, error {:.3f}–{:.3f}".format(*ends) if len(ends) == 4 else ""
    return {
        **{"task": title, "lambda": point.lam, "lam": number(point.lam), "documents": point.documents},
        **{"x": error.value, "x_low": error.low, "x_high": error.high},
        **{"y": accuracy.value, "y_low": accuracy.low, "y_high": accuracy.high},
        **{"membership": point.membership, "interval": interval},
    }


def _scaled(facts: Facts, title: str, frontier: Frontier) -> tuple[Cell, Cell] | None:
    """Return a task's accuracy and error for aligned after temperature scaling, or None if there are none."""
    task = next((task for task in facts.tasks if task.name == title and task.frontier is frontier), None)
    aligned = facts.parents.get("aligned")
    if task is None or aligned is None or aligned in task.apart:
        return None
    accuracy, error = (
        task.cell(aligned, "acc" if task.is_answered else facts.accuracy),
        task.cell(aligned, f"{facts.error}_scaled"),
    )
    return None if accuracy.plottable is None or error.plottable is None else (accuracy, error)
