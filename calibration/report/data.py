"""Rows become the data of a chart as CSV, which is a third of the size of a JSON object for each row."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibration.report.vega import Spec

TEXT = ("task", "role", "label", "series", "lambda", "interval")


def chart_data(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], digits: int = 6) -> Spec:
    """Return these columns of rows as the data of a chart; columns in TEXT are text, all others numbers of so many digits.

    A value that is missing, None or not finite becomes null, for which no mark is drawn.
    """
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(row.get(column), digits) for column in columns] for row in rows)
    parse = {column: "string" if column in TEXT else "number" for column in columns}
    return {"values": sink.getvalue(), "format": {"type": "csv", "parse": parse}}


def _field(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
