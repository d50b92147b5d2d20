"""pandas over a run: accuracy and calibration error along the line, side by side.

python examples/with_pandas.py runs/demo
"""

import sys

from lambdasweep import open_run

if len(sys.argv) != 2:
    sys.exit(__doc__)
metrics = open_run(sys.argv[1]).metrics().to_pandas()
shown = metrics[
    metrics["metric"].isin(["acc", "ece_width15"]) & (metrics["split"] == "all") & (metrics["confidence"] == "sum")
]
print(shown.pivot_table(index=["task", "lam"], columns="metric", values="value").to_string())
