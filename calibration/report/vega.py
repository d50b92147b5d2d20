"""Charts are Vega-Lite specifications in plain dicts, put together by these few functions.

Altair has classes for them, which check and copy every part of a chart whenever it grows: a report spent most of its time
there. Tests hold the finished charts against altair's copy of the Vega-Lite schema instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
"""A Vega-Lite specification or a part of one is a dict."""


def quantitative(field: str, **properties: Any) -> Spec:
    """Return the channel that shows a field of numbers."""
    return {"field": field, "type": "quantitative"} | properties


def nominal(field: str, **properties: Any) -> Spec:
    """Return the channel that shows a field of names."""
    return {"field": field, "type": "nominal"} | properties


def ordinal(field: str, **properties: Any) -> Spec:
    """Return the channel that shows a field of values in order, with one place for each."""
    return {"field": field, "type": "ordinal"} | properties


def end(field: str) -> Spec:
    """Return the second end (x2 or y2) of a mark that has two."""
    return {"field": field}


def together_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the filter that leaves out rows that are `apart`, or no filter where none is."""
    return ["!datum.apart"] if any(row.get("apart") for row in rows) else []


def mark(kind: str, encoding: Mapping[str, Any], transform: Sequence[Spec | str] = (), **properties: Any) -> Spec:
    """Return a layer.

    Args:
        kind: the kind of the mark, like `line`.
        encoding: the channels by their names.
        transform: the transforms of the data before it is drawn; a text is a filter.
        properties: further properties of the mark.
    """
    steps = [{"filter": step} if isinstance(step, str) else step for step in transform]
    return {
        **({"transform": steps} if steps else {}),
        **{"mark": {"type": kind} | properties, "encoding": dict(encoding)},
    }


def calculated(**expressions: str) -> list[Spec]:
    """Return the transform that adds a field for each expression, in their order."""
    return [{"calculate": expression, "as": name} for name, expression in expressions.items()]


def following(chart: Spec, params: Sequence[Spec], filters: str = "") -> Spec:
    """Return a chart that has these parameters besides its own, and draws the rows for which `filters` is true."""
    transform = [*chart.get("transform", []), *([{"filter": filters}] if filters else [])]
    return chart | ({"transform": transform} if transform else {}) | {"params": [*chart.get("params", []), *params]}


def facet(chart: Spec, channels: Spec, **properties: Any) -> Spec:
    """Return a chart drawn once for each value of a field.

    Args:
        chart: the chart that is drawn; its data become those of the whole.
        channels: one channel, or those of `row` and `column`.
        properties: further properties of the whole.
    """
    inner = {key: value for key, value in chart.items() if key != "data"}
    return {"data": chart["data"], "facet": channels, "spec": inner} | properties
