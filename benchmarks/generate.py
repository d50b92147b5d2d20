"""This compares a sweep of GSM8K with mergekit and lm-eval's vLLM backend for each λ, and measures what logprobs cost.

    python benchmarks/generate.py --pair DIR --data DIR [--quick]
    python benchmarks/generate.py --tiny

The sweep has 11 λs of a local GSM8K task (100 documents, the same 5 shots, at most 64 new tokens, greedy). The usual way is
measured at three λs and multiplied, from the start of each command to its end, with our dtype, threads and settings.
Before that, on one engine at λ = 0.5, of 32 of the documents: the time with each token's scores over that of the same
requests through the same engine without them (`logprob_overhead`), and our output tokens a second over those of plain
`vllm.LLM.generate` in a process of its own (`throughput_ratio`), each the best of three. `output_mismatches` and
`metric_mismatches` are held against the peer.

DIR of --pair is what benchmarks/real_pair.py makes; that of --data holds gsm8k_500.jsonl. --tiny takes the demo pair and
made-up rows, and leaves the sweep and its peer out, whose figures are null; its ratios are of a model that takes no time,
and say nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from answer_tasks import GSM8K, read_rows, write_gsm8k
from peers import (
    LM_EVAL,
    MERGEKIT,
    ROOT,
    engine_arguments,
    engine_settings,
    environment,
    header,
    lm_eval,
    merge,
    merge_config,
)
from tiny import WINDOW, write_tiny_inputs

from serve.settings import EngineSettings, available_cores
from serve.start import process_environment

GRID, LAMBDAS = "0:1:0.1", 11
PEER_LAMBDAS = ("0", "0.5", "1")  # mergekit does not round these
DOCUMENTS, SHOTS, NEW_TOKENS = 100, 5, 64
ON_ONE_ENGINE = 32  # documents
UNTIL = ("Question:",)


def in_process(command: list[Any], log: Path, variables: dict[str, str] | None = None) -> float:
    """Run a command to its end and return its seconds; its words are shown where it fails."""
    began = time.perf_counter()
    with open(log, "w") as stream:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            stdout=stream,
            stderr=stream,
        )
    if done.returncode:
        sys.exit(f"generate: {command[1]} failed:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - began


def written(script: str, job: dict[str, Any], folder: Path, *kind: str, python: Path | None = None) -> Any:
    """Return what a script of this folder writes of a job, in a process of its own."""
    path, out = folder / "job.json", folder / "job.out"
    path.write_text(json.dumps(job | {"out": str(out)}, default=str))
    settings = job.get("settings")
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "PYTHONPATH": str(ROOT)}
    if settings:
        variables |= process_environment(EngineSettings.from_json(settings), available_cores())
    in_process(
        [python or sys.executable, Path(__file__).with_name(script), *kind, path], folder / f"{script}.log", variables
    )
    return json.loads(out.read_text())


def on_one_engine(
    base: Path, aligned: Path, task: Path, limit: int, new_tokens: int, lam: str, settings: EngineSettings, folder: Path
) -> dict[str, Any]:
    """Return the ratios of one engine."""
    job = {"settings": settings.to_json(), "cores": available_cores(), "base": base, "aligned": aligned, "lam": lam}
    ours = written("our_answers.py", job | {"task": str(task), "limit": limit}, folder)
    plain = written(
        "plain_answers.py",
        {"model": base, "settings": settings.to_json(), "prompts": ours["prompts"], "max_tokens": new_tokens},
        folder,
        "vllm",
    )
    overhead = min(ours["with_s"]) / min(ours["without_s"])
    rate, plain_rate = ours["tokens"] / min(ours["with_s"]), plain["tokens"] / min(plain["seconds"])
    print(
        f"one engine at λ = {lam}: {ours['tokens']} tokens in {min(ours['with_s']):.2f} s with scores, "
        f"{min(ours['without_s']):.2f} s without: {overhead:.3f} ×; {rate:.0f} tokens/s, plain vLLM {plain_rate:.0f}",
        flush=True,
    )
    return {"logprob_overhead": overhead, "throughput_ratio": rate / plain_rate}


def sweep(pair: Path, task: Path, out: Path, settings: EngineSettings) -> tuple[float, dict[str, dict[str, float]]]:
    """Run the sweep; return its seconds, and lm-eval's metrics by λ."""
    command: list[Any] = [Path(sys.executable).with_name("lambdasweep"), "run", "--lambdas", GRID, "--replicas", "1"]
    command += ["--base", pair / "base", "--aligned", pair / "aligned", "--task", f"lm-eval:{task}", "--out", out]
    command += ["--max-model-len", settings.max_model_len, "--limit", DOCUMENTS]
    seconds = in_process(command, out.with_suffix(".log"))
    found: dict[str, dict[str, float]] = {}
    for row in pq.read_table(out / "lm_eval" / f"task={GSM8K}.parquet").to_pylist():
        found.setdefault(f"{float(row['lam']):g}", {})[row["metric"]] = row["value"]
    return seconds, found


def usual(
    pair: Path, task: Path, lam: str, limit: int, scratch: Path, settings: EngineSettings
) -> tuple[float, float, Path]:
    """Merge and evaluate one λ the usual way; return seconds of merging, those of lm-eval, and the folder of its results."""
    config, merged, out = scratch / "merge.yaml", scratch / f"merged-{lam}", scratch / f"peer-{lam}"
    config.write_text(merge_config(pair / "base", pair / "aligned", lam, "bfloat16"))
    merging = merge(config, merged)
    arguments = ",".join(f"{key}={value}" for key, value in engine_arguments(merged, settings).items())
    command: list[Any] = [
        lm_eval(),
        "-m",
        "lm_eval",
        "run",
        "--model",
        "vllm",
        "--tasks",
        GSM8K,
        "--log_samples",
    ]
    command += ["--include_path", task.parent, "--model_args", arguments, "--batch_size", "auto"]
    command += ["--limit", limit, "--output_path", out]
    variables = {
        **process_environment(settings, available_cores()),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
    }
    return merging, in_process(command, scratch / "lm-eval.log", variables), out


def of_peer(out: Path) -> tuple[dict[str, float], list[str]]:
    """Return the metrics and the texts of lm-eval's results."""
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    metrics = json.loads(results.read_text())["results"][GSM8K]
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    texts = {row["doc_id"]: row["resps"][0][0] for row in rows}
    kept = {key: value for key, value in metrics.items() if "," in key and "_stderr" not in key}
    return kept, [texts[number] for number in sorted(texts)]


def tiny(folder: Path) -> dict[str, Any]:
    """Write and run a small task on the demo pair."""
    pair = write_tiny_inputs(folder / "pair")
    base, aligned = pair / "base", pair / "aligned"
    task = write_gsm8k(folder, read_rows(pair / "gsm8k_500.jsonl", 10), 2, 8, UNTIL)
    settings = engine_settings(WINDOW)
    ratios = on_one_engine(base, aligned, task, 8, 8, "0", settings, folder)
    return {"sweep_speedup": None, **ratios, "metric_mismatches": None, "output_mismatches": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with base and aligned")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("LAMBDASWEEP_DATA"), help="folder with gsm8k_500.jsonl"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the documents, and one λ of the peer")
    parser.add_argument("--tiny", action="store_true", help="the demo pair, without the sweep")
    arguments = parser.parse_args()
    if arguments.pair is None and not arguments.tiny:
        parser.error("--pair is needed")
    with tempfile.TemporaryDirectory(dir=None if arguments.tiny else arguments.pair.resolve().parent) as name:
        folder = Path(name)
        if arguments.tiny:
            print(header("written answers, tiny", engine_settings(WINDOW), folder), flush=True)
            print(json.dumps(tiny(folder)))
            return
        print(json.dumps(full(arguments, folder)))


def full(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the sweep, the usual way, and one engine."""
    if arguments.data is None:
        sys.exit("generate: --data is needed, or LAMBDASWEEP_DATA")
    pair, documents = arguments.pair.resolve(), DOCUMENTS // (10 if arguments.quick else 1)
    settings = engine_settings(2048)
    environment("mergekit", MERGEKIT), lm_eval()  # this does not count as time
    print(header("written answers: 11 λ of GSM8K", settings, pair) + f"; {MERGEKIT}, {LM_EVAL}", flush=True)
    rows = read_rows(arguments.data / "gsm8k_500.jsonl", SHOTS + documents)
    task = write_gsm8k(folder, rows, SHOTS, NEW_TOKENS, UNTIL, "first_n")
    ratios = on_one_engine(
        pair / "base", pair / "aligned", task, min(documents, ON_ONE_ENGINE), NEW_TOKENS, "0.5", settings, folder
    )
    seconds, metrics = sweep(pair, task, folder / "run", settings)
    print(
        f"ours: {documents} documents, {SHOTS} shots, {NEW_TOKENS} new tokens; {seconds:.0f} s for {LAMBDAS} λ",
        flush=True,
    )
    peer, wrong_metrics, wrong_outputs = [], 0, 0
    for lam in PEER_LAMBDAS[1:2] if arguments.quick else PEER_LAMBDAS:
        merging, evaluating, out = usual(pair, task, lam, documents, folder, settings)
        peer.append(merging + evaluating)
        theirs, texts = of_peer(out)
        point = folder / "run" / "generations" / f"task={GSM8K}" / f"lambda={lam}"
        own = [row["text"] for row in pq.read_table(point).sort_by("request_id").to_pylist()]
        wrong_outputs += sum(a != b for a, b in zip(own, texts, strict=True))
        wrong_metrics += sum(metrics[lam].get(key) != value for key, value in theirs.items())
        print(
            f"  λ {lam}: mergekit {merging:.0f} s + lm-eval {evaluating:.0f} s; {theirs}, ours {metrics[lam]}",
            flush=True,
        )
    whole = LAMBDAS * sum(peer) / len(peer)
    print(f"  the usual way {whole:.0f} s for {LAMBDAS} λ: {whole / seconds:.1f} × ours", flush=True)
    return {
        "sweep_speedup": whole / seconds,
        **ratios,
        "metric_mismatches": wrong_metrics,
        "output_mismatches": wrong_outputs,
    }


if __name__ == "__main__":
    main()
