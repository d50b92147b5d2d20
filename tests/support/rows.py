"""This picks rows of a table, most of which would take long to turn into Python's values."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc


def rows_of(table: pa.Table, **wanted: object) -> list[dict]:
    """Return the rows that have these values, as dicts; a λ may be a number or its text."""
    for name, value in wanted.items():
        kind = table.schema.field(name).type
        value = Decimal(value) if pa.types.is_decimal(kind) else value
        table = table.filter(pc.equal(table[name], pa.scalar(value, kind)))
    return table.to_pylist()


def one_row(table: pa.Table, **wanted: object) -> dict:
    """Return the one row that has these values."""
    (row,) = rows_of(table, **wanted)
    return row
