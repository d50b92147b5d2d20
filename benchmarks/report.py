"""This times `lambdasweep report` on a large made-up sweep: 101 λ × 14,000 questions of four choices, 10⁸ tokens.

    python benchmarks/report.py [--out DIR] [--quick]

The tables have the form in which a sweep commits them, of one task in shards. Their numbers are drawn so that the models
between the parents are more accurate and better calibrated. They are left in DIR, if one is given, and used again. It prints
the seconds and the largest memory of the command, and its processor time, which other load on the machine does not change.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.rundir import RunDir

CHOICES, SHARDS, TOKENS = 4, 4, (4, 31)  # tokens of a continuation, 17 on average
CONTEXT = 40


def generate(run: RunDir, documents: int, lambdas: list[str]) -> None:
    """Write a run directory."""
    rng = np.random.default_rng(0)
    rows = documents * CHOICES
    lengths = rng.integers(*TOKENS, rows)
    gold = rng.integers(CHOICES, size=documents)
    is_gold = np.arange(rows) % CHOICES == np.repeat(gold, CHOICES)
    ids = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(lengths + CONTEXT)]).astype(np.int32),
        pa.array(rng.integers(50_000, size=int((lengths + CONTEXT).sum())).astype(np.int32)),
    )
    requests = pa.table(
        {
            "request_id": np.arange(rows),
            "doc_id": np.repeat(np.arange(documents), CHOICES).astype(str),
            "choice": (np.arange(rows) % CHOICES).astype(np.int16),
            "token_ids": ids,
            "continuation_start": np.full(rows, CONTEXT, np.int32),
            "continuation_bytes": (4 * lengths).astype(np.int32),
            "is_gold": is_gold,
        },
        schema=schemas.REQUESTS,
    )
    commit_table(run.requests("generated"), requests)
    cuts = [documents * shard // SHARDS * CHOICES for shard in range(SHARDS + 1)]
    skill, noise = rng.normal(1.2, 1.0, documents), rng.normal(size=rows)
    for lam in lambdas:
        quality = 1 - (float(lam) - 0.6) ** 2
        sharpness = 1 + 2 * float(lam)
        # The log-probability of a choice, spread over its tokens.
        total = sharpness * (quality * np.repeat(skill, CHOICES) * is_gold + noise) - 2.0 * lengths
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        each = np.repeat(total / lengths, lengths) + rng.normal(scale=0.3, size=offsets[-1])
        logprobs = np.minimum(each, -1e-3).astype(np.float32)
        greedy = logprobs > -0.7
        ranks = np.where(greedy, 1, 2 + (-logprobs).astype(np.int64)).astype(np.int32)
        top1 = np.where(greedy, logprobs, -0.7).astype(np.float32)
        for shard, (first, end) in enumerate(itertools.pairwise(cuts)):
            bounds = (offsets[first : end + 1] - offsets[first]).astype(np.int32)
            part = slice(offsets[first], offsets[end])

            def column(values: np.ndarray, bounds: np.ndarray = bounds, part: slice = part) -> pa.ListArray:
                return pa.ListArray.from_arrays(bounds, pa.array(values[part]))

            table = pa.table(
                {
                    "request_id": np.arange(first, end),
                    **schemas.place_columns(lam, end - first),
                    "logprobs": column(logprobs),
                    "ranks": column(ranks),
                    "top1_ids": column(np.where(greedy, 7, 8).astype(np.int32)),
                    "top1_logprobs": column(top1),
                },
                schema=schemas.TOKENS,
            )
            commit_table(run.unit("tokens", "generated", lam, shard), table)
    task = {
        "file": "generated.jsonl",
        "sha256": "0" * 64,
        "requests_sha256": "0" * 64,
        "format": "cloze",
        "template": "generated",
        "shots": 0,
        "limit": None,
        "seed": 0,
        "documents": documents,
        "requests": rows,
        "duplicates": 0,
        "shards": [list(pair) for pair in itertools.pairwise(cuts)],
        "costs": [1] * SHARDS,
        "lambdas": lambdas,
    }
    parent = {"source": "generated", "revision": None, "fingerprint": "0" * 64, "tokenizer_sha256": None}
    commit_json(
        run.sweep_json,
        {
            "schema": schemas.SCHEMA_VERSION,
            "pair": {"base": parent, "aligned": parent},
            "tokenizer": "base",
            "engine": {"device": "cpu", "dtype": "float32", "tensor_parallel": 1},
            "versions": {"vllm": "generated"},
        },
    )
    # This comes last, so that everything that it names is there.
    commit_json(run.plan_json, {"tasks": {"generated": task}})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the generated tables stay")
    parser.add_argument("--quick", action="store_true", help="11 λ × 1,400 questions")
    parser.add_argument("--tiny", action="store_true", help="3 λ × 60 questions")
    arguments = parser.parse_args()
    documents, points = (60, 3) if arguments.tiny else (1_400, 11) if arguments.quick else (14_000, 101)
    lambdas = [f"{point / (points - 1):.2f}".rstrip("0").rstrip(".") for point in range(points)]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(arguments.out or Path(folder) / "run")
        if not run.plan_json.exists():
            generate(run, documents, lambdas)
        cores = len(os.sched_getaffinity(0))
        versions = f"Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}"
        print(f"report on {cores} cores, {versions}")
        began = time.perf_counter()
        command = [str(Path(sys.executable).with_name("lambdasweep")), "report", str(run.root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak, processor = usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime
        metrics = pq.read_table(run.metrics_parquet)
        tokens = int(pq.read_table(run.requests("generated"), columns=["continuation_bytes"])[0].to_numpy().sum()) // 4
    requests = documents * CHOICES * len(lambdas)
    resamples = max(value for value in metrics.column("resamples").to_pylist() if value is not None)
    print(
        f"{len(lambdas)} λ × {documents} documents: {requests} requests, {tokens * len(lambdas)} tokens, {metrics.num_rows} "
        f"metrics with up to {resamples} resamples in {seconds:.0f} s, {processor:.0f} s of processor time at "
        f"load {os.getloadavg()[1]:.1f}, {peak / 2**30:.2f} GiB at most"
    )
    found = {
        "seconds": seconds,
        "cpu_seconds": processor,
        "peak_gib": peak / 2**30,
        "requests": requests,
        "metrics": metrics.num_rows,
    }
    print(json.dumps(found | {"resamples": resamples}))


if __name__ == "__main__":
    main()
