"""This compares a whole `lambdasweep run` with the usual way, a merge to disk and lm-evaluation-harness for each λ.

    python benchmarks/sweep.py --pair DIR [--quick] | --tiny

DIR holds `base`, `aligned` and `arc_easy.jsonl` (benchmarks/real_pair.py makes one). It sweeps 11 λs twice: with five-shot
letter questions, and with zero-shot answers in full text. The peer is mergekit's linear merge to disk and lm-eval with its
vLLM backend, each in an environment and a process of its own, with our dtype, threads and engine settings, on the same
prompts, character by character. It is measured at three λs and multiplied. Everything is counted from the start of the
command to its end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from peers import (
    LM_EVAL,
    MERGEKIT,
    engine_arguments,
    engine_settings,
    environment,
    header,
    lm_eval,
    merge,
    merge_config,
    prompts,
)
from tiny import WINDOW, write_tiny_inputs

from lambdasweep.tasks.documents import TaskSpec
from serve.settings import EngineSettings, available_cores
from serve.start import process_environment

GRID, LAMBDAS = "0:1:0.1", 11
PEER_LAMBDAS = ("0", "0.5", "1")  # mergekit does not round these


@dataclass(frozen=True)
class Job:
    """This is one format of the task."""

    name: str
    format: str
    shots: int
    limit: int


def write_task(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write an lm-eval task that shows the rows as they are."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{context}}"\ndoc_to_choice: choices\ndoc_to_target: gold\n'
        'target_delimiter: " "\nnum_fewshot: 0\nmetric_list:\n  - metric: acc\n',
        encoding="utf-8",
    )


def ours(pair: Path, job: Job, data: Path, out: Path, settings: EngineSettings) -> tuple[float, dict[str, float]]:
    """Run the sweep; return its seconds and the accuracy by λ."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("lambdasweep"),
        "run",
        "--base",
        pair / "base",
        "--aligned",
        pair / "aligned",
    ]
    command += ["--lambdas", GRID, "--task", f"arc={data}", "--format", job.format, "--shots", str(job.shots)]
    command += [
        "--limit",
        str(job.limit),
        "--out",
        out,
        "--replicas",
        "1",
        "--max-model-len",
        str(settings.max_model_len),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    table = pq.read_table(out / "metrics.parquet")
    kept = table.filter(
        (pc.field("metric") == "acc") & (pc.field("split") == "all") & (pc.field("confidence") == "sum")
    )
    found = {f"{float(row['lam']):g}": row["value"] for row in kept.to_pylist()}
    return seconds, found


def theirs(
    pair: Path, job: Job, lam: str, tasks: Path, scratch: Path, settings: EngineSettings
) -> tuple[float, float, float]:
    """Merge and score one λ the usual way; return seconds of merging, seconds of lm-eval, accuracy."""
    config, merged, out = scratch / "merge.yaml", scratch / f"merged-{job.name}-{lam}", scratch / f"{job.name}-{lam}"
    stored = "bfloat16"
    config.write_text(merge_config(pair / "base", pair / "aligned", lam, stored))
    merging = merge(config, merged)
    arguments = engine_arguments(merged, settings)
    command: list[str | Path] = [lm_eval(), "-m", "lm_eval", "run", "--model", "vllm"]
    command += ["--tasks", job.name, "--include_path", tasks]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--batch_size", "auto", "--output_path", out]
    environment_of_engine = {
        **os.environ,
        **process_environment(settings, available_cores()),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
    }
    began = time.perf_counter()
    with open(scratch / "lm-eval.log", "w+") as log:
        if subprocess.run(command, env=environment_of_engine, stdout=log, stderr=log).returncode:
            log.seek(0)
            sys.exit(f"sweep: lm-eval failed:\n{log.read()[-3000:]}")
    seconds = time.perf_counter() - began
    (found,) = out.rglob("results_*.json")
    return merging, seconds, json.loads(found.read_text())["results"][job.name]["acc,none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with base, aligned and arc_easy.jsonl")
    parser.add_argument("--quick", action="store_true", help="a tenth of the documents, and one λ of the peer")
    parser.add_argument("--tiny", action="store_true", help="the demo pair, a few documents, and no peer")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.pair = write_tiny_inputs(Path(tempfile.mkdtemp()) / "tiny")
    if arguments.pair is None:
        parser.error("--pair is needed")
    pair, share = arguments.pair.resolve(), 20 if arguments.tiny else 10 if arguments.quick else 1
    peer_lambdas = () if arguments.tiny else PEER_LAMBDAS[1:2] if arguments.quick else PEER_LAMBDAS
    settings = engine_settings(WINDOW if arguments.tiny else 1024)
    if peer_lambdas:
        environment("mergekit", MERGEKIT), lm_eval()  # this does not count as time
    print(header("a sweep of 11 λ over ARC-Easy", settings, pair) + f"; {MERGEKIT}, {LM_EVAL}", flush=True)
    result: dict[str, Any] = {"acc_mismatches": 0}
    with tempfile.TemporaryDirectory(dir=pair.parent) as folder:
        scratch = Path(folder)
        # A choice that is repeated is scored once here and twice there.
        rows = [json.loads(line) for line in (pair / "arc_easy.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if len(set(row["choices"])) == len(row["choices"])]
        data = scratch / "arc.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        jobs = (Job("letters", "letters", 5, 100 // share), Job("cloze", "cloze", 0, 250 // share))
        for job in jobs[:1] if arguments.tiny else jobs:
            spec = TaskSpec("arc", data, format=job.format, shots=job.shots, limit=job.limit)
            write_task(scratch, job.name, prompts(spec))
            seconds, accuracy = ours(pair, job, data, scratch / f"run-{job.name}", settings)
            print(
                f"{job.name}: {job.limit} documents, {job.shots} shots; ours {seconds:.0f} s for {LAMBDAS} λ",
                flush=True,
            )
            peer = []
            for lam in peer_lambdas:
                merging, scoring, acc = theirs(pair, job, lam, scratch, scratch, settings)
                peer.append(merging + scoring)
                result["acc_mismatches"] += acc != accuracy[lam]
                print(
                    f"  λ {lam}: mergekit {merging:.0f} s + lm-eval {scoring:.0f} s; accuracy {acc:.4f}, "
                    f"ours {accuracy[lam]:.4f}",
                    flush=True,
                )
            result |= {f"{job.name}_acc": accuracy, f"{job.name}_s": seconds}
            if not peer:
                continue
            usual = LAMBDAS * sum(peer) / len(peer)
            result |= {f"{job.name}_usual_s": usual, f"{job.name}_speedup": usual / seconds}
            print(f"  the usual way {usual:.0f} s for {LAMBDAS} λ: {usual / seconds:.1f} × ours", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
