"""All figures share colours that a colour-blind reader can tell apart, on a light and a dark page, and the scale of λ."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.report.vega import Spec, nominal, quantitative
from contract.points import is_named

# The hue goes from violet to orange and the luminance only up, so that the order of λs is seen without colour, too. Every
# colour of a ramp has a contrast of at least 3 to its background.
_RAMPS = {
    "light": ["#2b1a8f", "#8a1fa0", "#cc3f72", "#d9601a"],
    "dark": ["#8f7bff", "#d070d0", "#ff8f6b", "#ffd84d"],
}
_INK = {"light": "#1c2128", "dark": "#e8edf3"}
_MUTED = {"light": "#57606a", "dark": "#9aa5b1"}
_GRID = {"light": "#e7eaee", "dark": "#2a323c"}
_BACKGROUND = {"light": "#ffffff", "dark": "#12171d"}

# These colours follow M. Okabe and K. Ito, "Color universal design" (2008), and are readable on both backgrounds.
ACCURACY_COLOUR = "#2f7fc1"
OTHER_COLOUR = "#d55e00"
NEUTRAL = "#7d8792"  # the colour of the diagonal, of the way along λ, and of other lines that stand for no metric

HALO = "halo"  # the style of a text that is drawn once more below a label, so that no line or point runs through it

ROLES = ("base", "aligned", "other λ", "aligned, temperature-scaled")
_SHAPES = ("square", "triangle-up", "circle", "cross")


def theme(name: str, font: str) -> dict[str, Any]:
    """Return the Vega-Lite config for a page that is `light` or `dark`."""
    ink, muted = _INK[name], _MUTED[name]
    return {
        "background": _BACKGROUND[name],
        "font": font,
        "view": {"stroke": None, "continuousHeight": 240},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 11,
            "gridColor": _GRID[name],
            "domainColor": muted,
            "tickColor": muted,
            "labelOverlap": True,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "labelFontWeight": "bold"},
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "labelLimit": 260,
            "symbolStrokeColor": ink,
            "symbolBaseStrokeColor": ink,
        },
        "title": {"color": ink, "fontSize": 13, "anchor": "start", "fontWeight": "bold", "subtitleColor": muted},
        "text": {"color": ink},
        "style": {HALO: {"stroke": _BACKGROUND[name], "strokeWidth": 3, "strokeJoin": "round"}},
        "range": {"ramp": _RAMPS[name], "heatmap": _RAMPS[name]},
    }


def number(point: str) -> float | None:
    """Return λ as a number, or None for a point of several coordinates."""
    return None if is_named(point) else float(point)


def lam_colour(grid: Sequence[str], legend: bool = False) -> Spec:
    """Return the colour channel: a λ has one colour in all figures of a run; points of several coordinates share one."""
    if any(map(is_named, grid)):
        return {"value": ACCURACY_COLOUR}
    low, high = _ends(grid)
    high = high if high > low else low + 1
    ticks = sorted({low, high, *(parent for parent in (0.0, 1.0) if low < parent < high)})
    shown = {
        **{"title": "λ", "type": "gradient", "orient": "top", "gradientLength": 200, "gradientThickness": 8},
        **{"values": ticks, "format": "~g"},
    }
    return quantitative("lam", scale={"domain": [low, high]}, legend=shown if legend else None)


def lam_axis(grid: Sequence[str], parents: Mapping[str, str]) -> Spec:
    """Return the horizontal axis of everything that is drawn along λ."""
    low, high = _ends(grid)
    margin = 0.03 * (high - low) or 0.5  # a single λ still needs an axis
    title = f"λ ({', '.join(f'{lam} {name}' for name, lam in parents.items())})"
    return quantitative("lam", title=title, scale={"domain": [low - margin, high + margin], "nice": False})


def role_shape(explained: Sequence[str] = ()) -> Spec:
    """Return the shape channel of `role`, which shows without a colour that a point is a parent.

    A legend has these roles, those that are drawn; without any there is no legend.
    """
    shown = {"title": None, "orient": "bottom", "columns": 2, "values": list(explained)} if explained else None
    return nominal("role", scale={"domain": list(ROLES), "range": list(_SHAPES)}, legend=shown)


def _ends(grid: Sequence[str]) -> tuple[float, float]:
    values = [float(lam) for lam in grid]
    return min(values, default=0.0), max(values, default=1.0)
