"""This lists the files of a run directory, and makes a table to put there."""

from pathlib import Path

import pyarrow as pa

from contract import schemas


def tokens(rows: int, first: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "request_id": first + row,
                **schemas.place("0.35"),
                "logprobs": [-0.5, -float(first + row)],
                "ranks": [1, None],
                "top1_ids": [5, 6],
                "top1_logprobs": [-0.5, -0.25],
            }
            for row in range(rows)
        ],
        schema=schemas.TOKENS,
    )


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
