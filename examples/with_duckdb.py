"""SQL over a run: where does moving along the line turn a wrong answer into a right one?

python examples/with_duckdb.py runs/demo
"""

import sys

import duckdb

from lambdasweep import open_run

if len(sys.argv) != 2:
    sys.exit(__doc__)
examples = open_run(sys.argv[1]).examples()  # a pyarrow.Table, which DuckDB finds by the name of the variable
print(
    duckdb.sql("""
        SELECT task, here.lam,
               count(*) FILTER (here.correct AND NOT aligned.correct) AS gained,
               count(*) FILTER (aligned.correct AND NOT here.correct) AS lost
        FROM examples AS here JOIN (FROM examples WHERE lam = 1) AS aligned USING (task, doc_id)
        GROUP BY ALL ORDER BY ALL
    """)
)
