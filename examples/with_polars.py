"""polars over a run: the mean surprise of each token position along the line.

python examples/with_polars.py runs/demo
"""

import sys

import polars as pl

from lambdasweep import open_run

if len(sys.argv) != 2:
    sys.exit(__doc__)
tokens = pl.from_arrow(open_run(sys.argv[1]).explode())
assert isinstance(tokens, pl.DataFrame)
print(
    tokens.group_by("task", "position", "lam")
    .agg((-pl.col("logprob")).mean().alias("nats"), pl.len().alias("tokens"))
    .sort("task", "position", "lam")
)
