"""This script scores task files with lambdasweep's engine, unit by unit as a replica does, in a process of its own.

    python our_scores.py JOB.json

The job is {"settings", "cores", "base", "aligned", "lam", "workloads": {name: {"file", "format", "shots", "limit"}}, "out"}.
For each workload it writes the seconds of scoring (the engine is started before), [log-likelihood, greedy] of each request,
the tokens computed, and the fewest that they could have been.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from lambdasweep.prepare import SHARD_TOKENS
from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.requests import build_requests, shards
from lambdasweep.tasks.tokens import load_tokenizer
from serve.settings import EngineSettings


def fewest_tokens(requests: pa.Table, block: int | None) -> int:
    """Return how many tokens one unit must compute where nothing but whole blocks can be shared.

    A request is computed up to its last token but one. Prompts that are equal are one; of the others each distinct block,
    with all that is before it, is computed once, and what does not fill a block is computed for each.
    """
    assert block is not None  # our settings for a benchmark give the size
    prompts = {tuple(ids[:-1]) for ids in requests.column("token_ids").to_pylist()}
    blocks = {ids[:end] for ids in prompts for end in range(block, len(ids) + 1, block)}
    return block * len(blocks) + sum(len(ids) % block for ids in prompts)


def main(job: dict[str, Any]) -> None:
    from serve.engine import Engine
    from serve.start import process_environment

    settings = EngineSettings.from_json(job["settings"])
    os.environ.update(process_environment(settings, job["cores"]))
    from serve.scoring import score_unit

    engine = Engine(Path(job["base"]), Path(job["aligned"]), settings)
    engine.switch(job["lam"])
    tokenizer = load_tokenizer(job["base"])
    found: dict[str, Any] = {}
    for name, workload in job["workloads"].items():
        table = build_requests(TaskSpec(name, **(workload | {"file": Path(workload["file"])})), tokenizer).table
        units = [table.slice(first, end - first) for first, end in shards(table, SHARD_TOKENS[settings.device])]
        began = time.perf_counter()
        scores = [score_unit(engine, unit, job["lam"]) for unit in units]
        seconds = time.perf_counter() - began
        rows = pa.concat_tables(unit.tokens for unit in scores).to_pylist()
        found[name] = {
            "seconds": seconds,
            "scores": [[sum(row["logprobs"]), all(rank == 1 for rank in row["ranks"])] for row in rows],
            "computed": sum(unit.prompt_tokens - unit.cached_tokens for unit in scores),
            "fewest": sum(fewest_tokens(unit, settings.block_size) for unit in units),
            "requests": table.num_rows,
        }
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
