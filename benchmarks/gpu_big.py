"""A pair of 8B, whose weights are random, is switched and scored; plain vLLM gets the same requests."""

import os
import statistics
import time
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from gpu_findings import CUDA, alone, finding, tell
from switch import copy_bandwidth

from contract import schemas
from serve.settings import available_cores, installed_device

SWITCHES = ("0.1", "0.2", "0.35", "0.45", "0.55", "0.6", "0.7", "0.85", "0.9", "1.1")


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
        rows: list[dict[str, Any]] = []
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
    from serve.engine import Engine
    from serve.start import process_environment

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
    live_bytes = nbytes * (1 if CUDA else 2)  # the CPU computes in float32
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
                # Each weight takes a product and a sum for each token; attention is left out.
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
        from serve.settings import Sampling

        draws = [Draw(ids, number) for number, ids in enumerate(prompts)]
        for _ in range(2):
            engine.clear_prefix_cache()
            began = time.perf_counter()
            engine.sample(draws, Sampling(1, 1.0, tokens, ()))
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
    """Run the same requests and samples through vLLM alone, with its own choice of a model runner."""
    chosen = alone(shape)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if not CUDA:
        from serve.start import process_environment

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
