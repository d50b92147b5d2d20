"""This makes requests that meet every branch of the scorer, and θ(λ) as a checkpoint to hold a live engine against."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from contract import schemas
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags

BLOCK = 32
VOCAB = 512


def make_requests() -> tuple[pa.Table, dict[str, list[int]]]:
    """Return requests that meet every branch of the scorer, and the request ids of each kind."""
    generator = torch.Generator().manual_seed(7)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCAB, (count,), generator=generator).tolist()

    rows: list[dict[str, Any]] = []
    kinds: dict[str, list[int]] = {}

    def add(kind: str, doc: str, context: list[int], continuation: list[int]) -> None:
        kinds.setdefault(kind, []).append(len(rows))
        rows.append(
            {
                "request_id": len(rows),
                "doc_id": doc,
                "choice": 0,
                "token_ids": context + continuation,
                "continuation_start": len(context),
                "continuation_bytes": 1,
                "is_gold": True,
            }
        )

    for number, length in enumerate((1, 31, 32, 33, 64, 100)):
        context = tokens(length)
        for choice in range(4):
            add("letters", f"letters-{number}", context, [10 + choice])
    for number, length in enumerate((5, 40, 90)):
        context = tokens(length)
        for _ in range(3):
            add("full", f"full-{number}", context, tokens(6))
    # The context ends with its block, so that the row of the first continuation token is in the cached prefix.
    context = tokens(2 * BLOCK)
    for _ in range(3):
        add("block", "block", context, tokens(5))
    context, common = tokens(BLOCK - 3), tokens(8)  # the choices' first tokens fill a block together with the context
    for _ in range(3):
        add("shared", "shared", context, common + tokens(4))
    add("longest", "longest", tokens(250), tokens(6))  # this request has exactly max_model_len tokens
    add("too long", "too long", tokens(250), tokens(7))
    add("empty", "empty", tokens(9), [])
    add("no context", "no context", [], tokens(2))
    add("vocabulary", "vocabulary", tokens(9), [VOCAB])
    return pa.Table.from_pylist(rows, schema=schemas.REQUESTS), kinds


def export(base: Path, aligned: Path, lam: str, out: Path) -> Path:
    """Write θ(λ) as `lambdasweep export` does, which tests/unit/merge/test_export.py holds against references."""
    if not out.exists():
        export_point(from_flags(None, str(base), str(aligned), None, None, lam), out, "base", "5GB", print)
    return out
