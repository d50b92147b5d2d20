"""This holds the demo pair on every tier against fresh engines, and against transformers on the CPU."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from gpu_findings import ALIGNED, BASE, CUDA, WORK, finding, settings
from peers import ROOT

from contract import schemas
from serve.settings import EngineSettings, Sampling, available_cores

PATH = ("0", "1", "0.35", "0.35", "1.5", "0")  # the way of the demo pair's engines, which comes back to where it began
COLUMNS = ("request_id", "logprobs", "ranks", "top1_ids", "top1_logprobs")


def demo_requests() -> pa.Table:
    """Return the first questions of both demo tasks, in full text and by letters."""
    from lambdasweep.tasks.documents import TaskSpec
    from lambdasweep.tasks.requests import build_requests
    from lambdasweep.tasks.tokens import load_tokenizer

    tokenizer = load_tokenizer(BASE)
    rows: list[dict[str, Any]] = []
    for form in ("letters", "cloze"):
        task = TaskSpec(form, ROOT / f"lambdasweep/demo/{form}.jsonl", format=form, limit=40)
        rows += [
            row | {"doc_id": f"{form} {row['doc_id']}"} for row in build_requests(task, tokenizer).table.to_pylist()
        ]
    rows = [row | {"request_id": number} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema=schemas.REQUESTS)


def walk(job_file: str) -> None:
    """Run one engine along a path of λs. The job: {"name", "base", "aligned", "settings", "parents", "path", "cores"}."""
    job = json.loads(Path(job_file).read_text())
    name = job["name"]
    from serve.engine import Engine
    from serve.start import process_environment

    chosen = EngineSettings.from_json(job["settings"])
    os.environ.update(process_environment(chosen, job["cores"]))
    from serve.hooks.seeded_draws import Draw
    from serve.scoring import score_unit

    with finding(f"engine {name}") as found:
        began = time.perf_counter()
        aligned = Path(job["aligned"]) if job["aligned"] else None
        engine = Engine(Path(job["base"]), aligned, chosen, job["parents"])
        found |= {"start_s": round(time.perf_counter() - began, 1), "route": engine.route, "fallback": engine.fallback}
        if CUDA:
            forbid_waiting(engine)
        table = pq.read_table(WORK / "requests.parquet")
        digests, switches = [], []
        for step, lam in enumerate(job["path"]):
            began = time.perf_counter()
            if lam is not None:
                engine.switch(lam)
            switches.append(round(time.perf_counter() - began, 4))
            pq.write_table(score_unit(engine, table, lam or "0").tokens, WORK / f"{name}-{step}.parquet")
            digests.append("/".join(engine.digests))
        prompts = [Draw(table.column("token_ids")[row].as_py()[:20], row) for row in range(8)]
        first, second = (engine.sample(prompts, Sampling(1, 1.0, 12, (1,))) for _ in range(2))
        found |= {"digests": digests, "switch_s": switches, "hardware": engine.hardware}
        found["samples repeat"] = [one.token_ids for one in first.drawn] == [one.token_ids for one in second.drawn]
        if (engine.fallback and job["parents"] != "reload") or not found["samples repeat"]:
            found["verdict"] = "failed"


def forbid_waiting(engine: Any) -> None:
    """Have PyTorch raise where a step's scoring would wait for the GPU."""
    import torch

    from serve.hooks.continuation_scores import ContinuationHead

    score = ContinuationHead._score

    def strictly(self: Any, *arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            score(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    ContinuationHead._score = strictly  # type: ignore[method-assign, assignment]


def live() -> None:
    merged = WORK / "merged"
    with finding("lambdasweep export"):
        command = ["export", "--base", BASE, "--aligned", ALIGNED, "--lam", "0.35", "--out", merged]
        subprocess.run([sys.executable, "-m", "lambdasweep", *map(str, command)], check=True)
    pq.write_table(demo_requests(), WORK / "requests.parquet")
    pair = {"base": BASE, "aligned": ALIGNED, "path": PATH, "settings": settings(), "parents": "device"}
    fresh = pair | {"base": merged, "aligned": None, "path": [None]}
    jobs: dict[str, dict[str, Any]] = {"device": pair, "fresh": fresh}
    jobs |= {tier: pair | {"parents": tier} for tier in ("pinned", "mmap", "reload")}
    if CUDA:
        # Vendor kernels that are compiled at the start are left out: they take minutes, and nothing here is about them.
        graphs = settings(extra={"gpu_memory_utilization": 0.3, "kernel_config": {"enable_jit_warmup": False}})
        jobs |= {
            "graphs": pair | {"settings": graphs},
            "graphs fresh": fresh | {"settings": graphs},
            "graphs fresh again": fresh | {"settings": graphs},
            "rounded head": pair | {"settings": settings(head_dtype="auto")},
            "float32": pair | {"settings": settings(dtype="float32")},
            "batch-invariant": pair | {"settings": settings(batch_invariant=True)},
            "batch-invariant fresh": fresh | {"settings": settings(batch_invariant=True)},
        }
    run_walks(jobs, at_a_time=16 if CUDA else 2)
    judge(jobs)


def run_walks(jobs: dict[str, dict[str, Any]], at_a_time: int) -> None:
    waiting = list(jobs.items())
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < at_a_time:
            name, job = waiting.pop(0)
            cores = available_cores()
            own = cores[len(running) % len(cores) :][:1]
            file = WORK / f"{name}.json"
            values = {**job, "name": name, "settings": job["settings"].to_json(), "cores": own}
            file.write_text(json.dumps(values, default=str))
            # Each engine compiles for itself, to see whether two compilations give the same bits.
            caches = {"VLLM_CACHE_ROOT": WORK / "cache" / name, "TORCHINDUCTOR_CACHE_DIR": WORK / "inductor" / name}
            with open(WORK / f"{name}.log", "w") as log:
                command = [sys.executable, str(Path(__file__).with_name("gpu_steps.py")), "walk", str(WORK), str(file)]
                env = os.environ | {key: str(value) for key, value in caches.items()}
                running.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
        running = [process for process in running if process.poll() is None]
        time.sleep(0.2)


def judge(jobs: dict[str, Any]) -> None:
    """Hold the tables against each other, bit by bit, and against transformers."""

    def table(name: str, step: int = 0) -> pa.Table:
        return pq.read_table(WORK / f"{name}-{step}.parquet")

    def equal(what: str, one: tuple[str, int], two: tuple[str, int]) -> None:
        with finding(what) as found:
            differ = [name for name in COLUMNS if not table(*one).column(name).equals(table(*two).column(name))]
            found |= {"verdict": "failed" if differ else "equal", **({"differ": differ} if differ else {})}

    at = PATH.index("0.35")
    for name in ("device", "pinned", "mmap", "reload", "graphs", "batch-invariant"):
        if name in jobs:
            other = f"{name} fresh" if f"{name} fresh" in jobs else "fresh"
            equal(f"{name}: live 0.35 and a fresh engine on the export", (name, at), (other, 0))
            equal(f"{name}: 0 before and after the way", (name, 0), (name, len(PATH) - 1))
    for name in ("pinned", "mmap", "reload"):
        equal(f"{name} and device at 1.5", (name, PATH.index("1.5")), ("device", PATH.index("1.5")))
    if "graphs" in jobs:
        equal("two engines with graphs, compiled apart", ("graphs fresh", 0), ("graphs fresh again", 0))
    exact = {lam: reference(lam) for lam in ("0", "0.35", "1")}
    for name in ("device", "rounded head", "graphs", "float32"):
        for lam, wanted in exact.items() if name in jobs else ():
            with finding(f"{name} at {lam} and transformers in float32 on the CPU (nats)") as found:
                rows = zip(table(name, PATH.index(lam)).column("logprobs").to_pylist(), wanted, strict=True)
                apart = [abs(a - b) for mine, theirs in rows for a, b in zip(mine, theirs, strict=True)]
                found |= {"largest": max(apart), "mean": statistics.mean(apart), "tokens": len(apart)}


def reference(lam: str) -> list[list[float]]:
    """Return the logprobs of the requests' continuations by transformers, in float32 on the CPU, of an export."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        {"0": BASE, "1": ALIGNED}.get(lam, WORK / "merged"), dtype=torch.float32
    )
    found = []
    for row in pq.read_table(WORK / "requests.parquet").to_pylist():
        ids, start = row["token_ids"], row["continuation_start"]
        with torch.inference_mode():
            scores = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        found.append([float(scores[place - 1, ids[place]]) for place in range(start, len(ids))])
    return found
