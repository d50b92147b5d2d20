"""This module writes θ as one line of text for a report or a model card."""

from collections.abc import Mapping


def formula(method: str, lams: Mapping[str, str], is_weighed: bool) -> str:
    """Write θ at a point, or in general: `base + 0.5 · (aligned − base)`, `slerp(base, aligned; λ · w)`.

    Args:
        method: the line's method.
        lams: what stands for λ, by the name of the aligned checkpoint; the only one's is "".
        is_weighed: the line has a map, whose weight of a tensor is w.
    """
    weight = " · w" if is_weighed else ""
    if method != "linear":
        return f"{method}(base, aligned; {', '.join(lams.values())}{weight})"
    return "base" + "".join(f" + {lam}{weight} · ({name or 'aligned'} − base)" for name, lam in lams.items())
