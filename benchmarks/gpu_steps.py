"""The steps of benchmarks/gpu.py, each in a process of its own: `python gpu_steps.py STEP WORK SHAPE`.

Every finding is a line of WORK/results.jsonl as soon as it is there, so that a run that is cut off loses nothing. A step
that fails says so in such a line; the others go on.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from peers import ROOT
from switch import copy_bandwidth

from contract import schemas
from serve.settings import EngineSettings, available_cores, installed_device

CUDA = installed_device() == "cuda"
BASE, ALIGNED = ROOT / "lambdasweep/demo/base", ROOT / "lambdasweep/demo/aligned"
PATH = ("0", "1", "0.35", "0.35", "1.5", "0")  # of the demo pair's engines; it comes back
SWITCHES = ("0.1", "0.2", "0.35", "0.45", "0.55", "0.6", "0.7", "0.85", "0.9", "1.1")
COLUMNS = ("request_id", "logprobs", "ranks", "top1_ids", "top1_logprobs")
WORK = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()


def tell(what: str, **values: Any) -> None:
    """Write one finding down."""
    line = json.dumps({"what": what, **values})
    print(line, flush=True)
    with open(WORK / "results.jsonl", "a") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def finding(what: str) -> Iterator[dict[str, Any]]:
    """Tell what the block found, with its seconds; or that it failed, and go on."""
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        yield found
    except Exception as error:
        traceback.print_exc()
        tell(what, verdict="failed", error=f"{type(error).__name__}: {error}"[:400])
    else:
        tell(what, seconds=round(time.perf_counter() - began, 2), **found)


def settings(**changes: Any) -> EngineSettings:
    """Return settings of an engine that shares its GPU, or its CPU, with others."""
    values: dict[str, Any] = {
        "device": installed_device(),
        "dtype": "bfloat16" if CUDA else "float32",
        "max_model_len": 256,
        "threads": 0 if CUDA else 1,
        "block_size": None if CUDA else 32,
        "kv_cache_bytes": 256 << 20 if CUDA else 64 << 20,
        "max_num_batched_tokens": 8192 if CUDA else 2048,
        "max_num_seqs": 1024 if CUDA else 256,
        # Of the GPU, what vLLM wants to find free when it starts.
        "extra": {"gpu_memory_utilization": 0.3, "enforce_eager": True} if CUDA else {},
    }
    return EngineSettings(**(values | changes))


def alone(shape: str, **extra: Any) -> EngineSettings:
    """Return settings of an engine that has the machine to itself."""
    threads = 0 if CUDA else len(available_cores())
    length, cache = (2048, 8 << 30) if shape == "8b" else (1024, 256 << 20)
    eager = {"enforce_eager": True} if CUDA else {}
    return settings(max_model_len=length, kv_cache_bytes=cache, threads=threads, extra=eager | extra)


# ---- bits: the formula on both devices, and the fused pass ----


def bits() -> None:
    import torch

    from merge.digest import WeightDigest, parameter_key, takes_words
    from merge.interpolate import theta
    from serve.switch import fused

    device = torch.device(installed_device())
    if CUDA:
        tell("gpu", name=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda)
    lams = ("0", "1", "0.05", "0.35", "0.4999", "0.5", "0.65", "0.9", "1.3", "-0.3", "-0.7")
    with finding("lerp: elements that differ between CPU and device") as found:
        generator = torch.Generator().manual_seed(0)
        differ: dict[str, int] = {}
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            base = torch.randn((1 << 20) + 1, generator=generator).to(dtype)
            aligned = (base.float() + 0.1 * torch.randn(base.shape, generator=generator)).to(dtype)
            for lam in lams:
                here = theta([base, aligned], lam)
                there = theta([base.to(device), aligned.to(device)], lam).cpu()
                count = int((here.view(torch.uint8) != there.view(torch.uint8)).sum())
                differ |= {f"{dtype} {lam}": count} if count else {}
        found |= {"cases": 3 * len(lams), "differ": differ, "verdict": "differs" if differ else "equal"}
    if not CUDA:
        return
    with finding("fused pass: cases unlike lerp and digest one after the other") as found:
        on_device = torch.Generator(device).manual_seed(0)
        wrong, cases = [], 0
        shapes = ((1024, 4096), (129, 14336), (4, 5000), (4096,), (3, 7, 8), (5, 12), (1, 16), (33, 4), (2000, 1))
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for shape in shapes:
                base, aligned = (
                    torch.randn(shape, generator=on_device, device=device).to(dtype) for _ in ("base", "aligned")
                )
                base.view(-1)[0] = -0.0
                for lam in lams:
                    cases += 1
                    exact, out = theta([base, aligned], lam), torch.full_like(base, 7.0)
                    mine, wanted = WeightDigest(device), WeightDigest(device)
                    words = takes_words(dtype.itemsize, shape[-1], ())
                    fused.write(base, aligned, lam, out, mine, parameter_key("x"), 11, words)
                    steps = [step // shape[-1] for step in exact.stride()[:-1]]
                    wanted.add(exact, parameter_key("x"), 11, steps, words)
                    same = torch.equal(out.view(torch.uint8), exact.view(torch.uint8))
                    if not same or mine.hex() != wanted.hex():
                        wrong.append(f"{dtype} {shape} {lam}")
        found |= {"cases": cases, "wrong": wrong[:9], "verdict": "failed" if wrong else "equal"}
    with finding("speed of memory and of products") as found:
        one, two = (torch.randn(8192, 8192, device=device).to(torch.bfloat16) for _ in range(2))
        found |= {tier: f"{copy_bandwidth('cuda', tier) / 1e9:.0f} GB/s" for tier in ("device", "pinned")}
        for _ in range(3):
            one @ two
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            one @ two
        torch.cuda.synchronize()
        found["bf16 product"] = f"{20 * 8192**3 / (time.perf_counter() - began) / 1e12:.0f} TFLOP/s"


# ---- live: the demo pair on every tier, against fresh engines and against transformers ----


def demo_requests() -> pa.Table:
    """Return the first questions of both demo tasks, in full text and by letters."""
    from lambdasweep.tasks import TaskSpec, build_requests, load_tokenizer

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
    from serve.engine import Engine, process_environment

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
        first, second = (engine.sample(prompts, 1.0, 12, [1]) for _ in range(2))
        found |= {"digests": digests, "switch_s": switches, "hardware": engine.hardware}
        found["samples repeat"] = first.drawn == second.drawn
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

    ContinuationHead._score = strictly  # type: ignore[method-assign]


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
        # Vendor kernels that are compiled at start are left out: they take minutes and are not what is looked at.
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
    waiting, running = list(jobs.items()), []
    while waiting or running:
        while waiting and len(running) < at_a_time:
            name, job = waiting.pop(0)
            cores = available_cores()
            own = cores[len(running) % len(cores) :][:1]
            file = WORK / f"{name}.json"
            values = {**job, "name": name, "settings": job["settings"].to_json(), "cores": own}
            file.write_text(json.dumps(values, default=str))
            # Each compiles for itself: whether two compilations give the same bits is looked at.
            caches = {"VLLM_CACHE_ROOT": WORK / "cache" / name, "TORCHINDUCTOR_CACHE_DIR": WORK / "inductor" / name}
            with open(WORK / f"{name}.log", "w") as log:
                command = [sys.executable, __file__, "walk", str(WORK), str(file)]
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


# ---- big: a pair of 8B, switched and scored ----


def workloads(vocabulary: int, shape: str) -> dict[str, tuple[pa.Table, int]]:
    """Return requests of random tokens, four choices a document, and how many documents the plain way gets."""
    random, shrink = Random(1), 1 if shape == "8b" else 20
    found = {}
    for name, shared, context, answers, documents, plain in (
        ("five-shot letters", 520, 70, (1, 1), 800, 40),
        ("full text, short", 0, 45, (4, 14), 400, 120),
        ("full text, long", 0, 400, (4, 14), 200, 40),
        ("five-shot full text", 520, 70, (4, 14), 200, 40),
    ):
        front = [random.randrange(3, vocabulary) for _ in range(shared)]
        rows = []
        for document in range(documents // shrink):
            question = [random.randrange(3, vocabulary) for _ in range(context)]
            for choice in range(4):
                length = random.randint(*answers)
                letters = [300 + choice]
                answer = letters if length == 1 else [random.randrange(3, vocabulary) for _ in range(length)]
                rows.append(
                    {
                        "request_id": len(rows),
                        "doc_id": str(document),
                        "choice": choice,
                        "token_ids": front + question + answer,
                        "continuation_start": shared + context,
                        "continuation_bytes": 1,
                        "is_gold": choice == 0,
                    }
                )
        found[name] = pa.Table.from_pylist(rows, schema=schemas.REQUESTS), max(2, plain // shrink)
    return found


def plainly(llm: Any, table: pa.Table) -> tuple[float, list[float]]:
    """Return seconds and log-likelihoods of one `prompt_logprobs` request a choice, as lm-eval sends them."""
    from vllm import SamplingParams

    sequences, starts = table.column("token_ids").to_pylist(), table.column("continuation_start").to_pylist()
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in sequences], sampling, use_tqdm=False)
    sums = [
        sum(output.prompt_logprobs[place][ids[place]].logprob for place in range(start, len(ids)))
        for ids, start, output in zip(sequences, starts, outputs, strict=True)
    ]
    return time.perf_counter() - began, sums


def start(pair: Path, shape: str, parents: str, what: str) -> tuple[Any, int]:
    """Start an engine over the big pair; return it and the bytes of one parent."""
    from serve.engine import Engine, process_environment

    chosen = alone(shape)
    os.environ.update(process_environment(chosen, available_cores()))
    nbytes = sum(file.stat().st_size for file in (pair / "base").glob("*.safetensors"))
    with finding(f"{what}: engine") as found:
        began = time.perf_counter()
        engine = Engine(pair / "base", pair / "aligned", chosen, parents)
        found |= {"start_s": round(time.perf_counter() - began, 1), "route": engine.route, "fallback": engine.fallback}
        found["parent"] = f"{nbytes / 1e9:.2f} GB"
    return engine, nbytes


def switching(engine: Any, nbytes: int, what: str) -> None:
    """Time switches, each to another λ, beside a copy of as many bytes as must move."""
    tier = engine.route.split()[-1]
    live_bytes = nbytes * (1 if CUDA else 2)  # float32 on the CPU
    moved = 2 * nbytes + (live_bytes if tier == "device" or not CUDA else 0)
    with finding(what) as found:
        seconds = []
        engine.switch("0.5")
        for lam in SWITCHES:
            began = time.perf_counter()
            engine.switch(lam)
            seconds.append(time.perf_counter() - began)
        bandwidth = copy_bandwidth(installed_device(), tier)
        median = statistics.median(seconds)
        found |= {
            "switch_s": round(median, 4),
            "slowest_s": round(max(seconds), 4),
            "moved": f"{moved / 1e9:.2f} GB",
            "at": f"{moved / median / 1e9:.0f} GB/s",
            "copy": f"{bandwidth / 1e9:.0f} GB/s",
            "fraction of copy": round(moved / median / bandwidth, 3),
            "digest": engine.digests[0],
        }


def in_parts(worker: Any, fuses: bool) -> None:
    """Have a worker's resident route interpolate and digest one after the other, or in one pass."""
    worker.weight_transfer_engine._route._fuses = fuses


def big(pair: str, shape: str) -> None:
    from serve.scoring import score_unit

    engine, nbytes = start(Path(pair), shape, "device" if CUDA else "auto", shape)
    switching(engine, nbytes, f"{shape}: switch")
    if CUDA:
        import torch

        engine._llm.collective_rpc(in_parts, args=(False,))
        switching(engine, nbytes, f"{shape}: switch in two passes")
        engine._llm.collective_rpc(in_parts, args=(True,))
    for name, (table, documents) in workloads(engine.vocab_size, shape).items():
        with finding(f"{shape}: {name}") as found:
            engine.switch("1.1")
            few = table.slice(0, 4 * documents)
            score_unit(engine, few, "1.1")  # kernels are chosen and compiled on first use
            began = time.perf_counter()
            unit = score_unit(engine, table, "1.1")
            seconds = time.perf_counter() - began
            engine.clear_prefix_cache()
            plainly(engine._llm, few.slice(0, 8))
            engine.clear_prefix_cache()
            plain_s, plain = plainly(engine._llm, few)
            ours = [sum(row) for row in score_unit(engine, few, "1.1").tokens.column("logprobs").to_pylist()]
            computed = unit.prompt_tokens - unit.cached_tokens
            found |= {
                "requests": table.num_rows,
                "s": round(seconds, 3),
                "requests_per_s": round(table.num_rows / seconds),
                "tokens_per_s": round(sum(map(len, table.column("token_ids").to_pylist())) / seconds),
                "computed_tokens_per_s": round(computed / seconds),
                # Two products and sums a weight and token; attention is left out.
                "TFLOP/s": round(computed * nbytes / seconds / 1e12, 1),
                "plain_requests_per_s": round(few.num_rows / plain_s, 1),
                "speedup": round((table.num_rows / seconds) / (few.num_rows / plain_s), 1),
                "max_rel_diff": max(abs(a - b) / abs(b) for a, b in zip(ours, plain, strict=True)),
            }
    with finding(f"{shape}: sampling through our hooks") as found:
        found["tokens_per_s"] = round(sampled(engine, None, engine.vocab_size, shape))
    with finding(f"{shape}: vLLM's reload_weights of a checkpoint") as found:
        began = time.perf_counter()
        engine._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(Path(pair) / "base")})
        found["reload_s"] = round(time.perf_counter() - began, 3)
    if CUDA:
        tell(f"{shape}: GPU memory at its most", GB=round(torch.cuda.max_memory_allocated() / 1e9, 1))


def sampled(engine: Any, llm: Any, vocabulary: int, shape: str) -> float:
    """Return tokens a second of seeded sampling, by an engine of ours or by vLLM alone."""
    random = Random(2)
    count, tokens = (256, 64) if shape == "8b" else (8, 4)
    prompts = [[random.randrange(3, vocabulary) for _ in range(100)] for _ in range(count)]
    if engine is not None:
        from serve.hooks.seeded_draws import Draw

        draws = [Draw(ids, number) for number, ids in enumerate(prompts)]
        for _ in range(2):
            engine.clear_prefix_cache()
            began = time.perf_counter()
            engine.sample(draws, 1.0, tokens, [])
            seconds = time.perf_counter() - began
        return count * tokens / seconds
    from vllm import SamplingParams

    parameters = [
        SamplingParams(seed=number, temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for number in range(count)
    ]
    for _ in range(2):
        llm.reset_prefix_cache()
        began = time.perf_counter()
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
    return count * tokens / seconds


def pinned(pair: str, shape: str) -> None:
    engine, nbytes = start(Path(pair), shape, "pinned" if CUDA else "auto", f"{shape}, parents in host memory")
    switching(engine, nbytes, f"{shape}: switch, parents in host memory")


def plain(pair: str, shape: str) -> None:
    """The same requests and samples through vLLM alone, with its own choice of a model runner."""
    chosen = alone(shape)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if not CUDA:
        from serve.engine import process_environment

        os.environ.update(process_environment(chosen, available_cores()))
    from vllm import LLM

    with finding(f"{shape}: plain vLLM: engine") as found:
        began = time.perf_counter()
        llm = LLM(
            model=str(Path(pair) / "base"),
            skip_tokenizer_init=True,
            dtype=chosen.dtype,
            max_model_len=chosen.max_model_len,
            block_size=chosen.block_size,
            kv_cache_memory_bytes=chosen.kv_cache_bytes,
            max_num_batched_tokens=chosen.max_num_batched_tokens,
            max_num_seqs=chosen.max_num_seqs,
            enforce_eager=True,
            seed=0,
        )
        found["start_s"] = round(time.perf_counter() - began, 1)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    for name, (table, documents) in workloads(vocabulary, shape).items():
        with finding(f"{shape}: {name}, plain vLLM") as found:
            few = table.slice(0, 4 * documents)
            plainly(llm, few.slice(0, 8))
            llm.reset_prefix_cache()
            seconds, _ = plainly(llm, few)
            found["requests_per_s"] = round(few.num_rows / seconds, 1)
    with finding(f"{shape}: sampling, plain vLLM") as found:
        found["tokens_per_s"] = round(sampled(None, llm, vocabulary, shape))


# ---- sweep: the demo through Ray, as a user runs it; serve: the OpenAI server ----


def command_line(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lambdasweep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def sweep() -> None:
    """The demo's pair and tasks, on a GPU that others use, too."""
    config = WORK / "demo.toml"
    tasks = [
        f'[[task]]\nname = "{form}"\nfile = "{ROOT}/lambdasweep/demo/{form}.jsonl"\nformat = "{form}"\nlimit = 40\n'
        for form in ("letters", "cloze")
    ]
    config.write_text("".join(tasks))
    flags: list[str | Path] = ["--base", BASE, "--aligned", ALIGNED, "--config", config, "--lambdas", "0:1.5:0.5"]
    for setting in ("gpu_memory_utilization=0.3", "kv_cache_memory_bytes=536870912") if CUDA else ():
        flags += ["--engine", setting]
    with finding("a sweep through Ray") as found:
        done = command_line("run", *flags, "--out", WORK / "demo-run")
        print(done.stdout[-6000:], done.stderr[-6000:])
        found |= {"exit": done.returncode, "last": done.stdout.strip().splitlines()[-2:]}
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no words"])[-1])


def serve() -> None:
    """`lambdasweep serve`: a completion with logprobs at two λs, and back."""
    import urllib.request

    def ask(path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        query = urllib.request.Request(f"http://127.0.0.1:8399{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(query, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    flags: list[str] = ["--port", "8399", "--max-model-len", "256"]
    if CUDA:
        flags += ["--gpu-memory-utilization", "0.3", "--enforce-eager", "--kv-cache-memory-bytes", str(512 << 20)]
    parents = ["--base", str(BASE), "--aligned", str(ALIGNED), "--lam", "0.35"]
    with finding("the OpenAI server") as found, open(WORK / "serve.log", "w") as log:
        command = [sys.executable, "-m", "lambdasweep", "serve", *parents, "--", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            began = time.perf_counter()
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with {process.returncode}: {(WORK / 'serve.log').read_text()[-300:]}")
                with contextlib.suppress(OSError):
                    ask("/health")
                    break
                time.sleep(0.5)
            found["start_s"] = round(time.perf_counter() - began, 1)
            name = ask("/v1/models")["data"][0]["id"]
            body = {"model": name, "prompt": [11, 12, 13, 14, 15], "max_tokens": 2, "temperature": 0, "logprobs": 1}
            values = []
            for lam in ("0.35", "1", "0.35"):
                ask("/v1/lambda", {"lam": lam})
                values.append(ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"])
            found["verdict"] = "equal" if values[0] == values[2] != values[1] else "failed"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


STEPS = {
    "bits": bits,
    "live": live,
    "walk": walk,
    "big": big,
    "pinned": pinned,
    "plain": plain,
    "sweep": sweep,
    "serve": serve,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[3:])
