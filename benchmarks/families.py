"""Small random models of each family: θ(λ) live, a fresh engine on the export, and transformers in float32.

    python benchmarks/families.py [--only NAME,NAME] [--table FILE.md] [--work DIR]

A pair of each family is made with random weights, so nothing is downloaded. Its engine says by which route it moves, or why
it does not; logprobs of a few prompts at λ = 0, 0.35 and 1 are held against transformers, those at 0.35 against a fresh
engine on the exported θ(0.35), bit by bit. A family is right when live equals fresh and is as near to transformers as a
fresh engine is; it is refused when the engine says that it cannot; anything else is wrong. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from peers import ROOT

from serve.settings import EngineSettings, available_cores, installed_device

LAMBDAS = ("0", "0.35", "1")
_DENSE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Name of transformers' classes, without Config and ForCausalLM: what differs from the dense shape.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 32},
    "Gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Gemma3Text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Phi3": {},
    "Mistral": {"head_dim": 32},
    "Olmo2": {},
    "Granite": {},
    "Cohere": {},
    "GPTNeoX": {},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": _EXPERTS | {"shared_expert_intermediate_size": 64},
    "Qwen3Moe": _EXPERTS | {"head_dim": 32},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Glm4Moe": {"head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    | {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "GptOss": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 48},
    "DeepseekV2": _LATENT | {"topk_method": "greedy"},
    "DeepseekV3": _LATENT,
}


def make_pair(family: str, out: Path) -> None:
    """Write `out`/base and `out`/aligned: random weights, and those with half as much added, in bfloat16."""
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**_DENSE | FAMILIES[family])
    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    kind = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")
    model = kind(config)
    parents: dict[str, dict[str, Any]] = {"base": {}, "aligned": {}}
    for name, weight in model.named_parameters():
        # A norm's weights are near 1 and the others' near 0, as in a model that has learnt something.
        start = 0.12 * torch.randn(weight.shape, generator=one) + float("norm" in name and "bias" not in name)
        parents["base"][name] = start
        parents["aligned"][name] = start + 0.06 * torch.randn(weight.shape, generator=two)
    for role, weights in parents.items():
        model.load_state_dict(weights, strict=False)
        model.to(torch.bfloat16).save_pretrained(out / role)
        model.to(torch.float32)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "lambdasweep/demo/base" / file, out / role)


def prompts() -> list[list[int]]:
    """Return prompts of lengths on both sides of a cache block's."""
    return [[3 + (17 * place + 29 * length) % 500 for place in range(length)] for length in (9, 32, 33, 70)]


def live(work: Path) -> dict[str, Any]:
    """In a process of its own: the route, and logprobs at each λ; or why there are none."""
    engine = _engine(work / "base", work / "aligned")
    found: dict[str, Any] = {"route": engine.route, "why": engine.fallback, "start_s": engine.start_s}
    for lam in LAMBDAS:
        began = time.perf_counter()
        engine.switch(lam)
        found["switch_s"] = round(time.perf_counter() - began, 4)
        found[lam] = _logprobs(engine)
    return found


def fresh(work: Path) -> dict[str, Any]:
    """In a process of its own: logprobs of a fresh engine on the export, and on each parent."""
    return {"0.35": _logprobs(_engine(work / "export", None))}


def _engine(base: Path, aligned: Path | None) -> Any:
    from serve.engine import Engine, process_environment

    device = installed_device()
    settings = EngineSettings(
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        max_model_len=128,
        threads=1 if device == "cpu" else 0,
        block_size=32 if device == "cpu" else None,
        kv_cache_bytes=64 << 20,
        extra={} if device == "cpu" else {"enforce_eager": True},
    )
    os.environ.update(process_environment(settings, available_cores()[:1]))
    began = time.perf_counter()
    engine: Any = Engine(base, aligned, settings)
    engine.start_s = round(time.perf_counter() - began, 1)
    return engine


def _logprobs(engine: Any) -> list[float]:
    from serve.engine import Prompt

    engine.clear_prefix_cache()
    answers = engine.score([Prompt(ids, 0, [0]) for ids in prompts()])
    order = sorted(range(len(answers.row)), key=lambda entry: (answers.prompt[entry], answers.row[entry]))
    return [float(answers.logprob[entry]) for entry in order]


def reference(checkpoint: Path) -> list[float]:
    """Return the same logprobs by transformers, in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    found: list[float] = []
    for ids in prompts():
        with torch.inference_mode():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found += [float(scores[row, token]) for row, token in enumerate([*ids[1:], 0])]
    return found


def child(what: str, work: Path) -> dict[str, Any]:
    """Run `live` or `fresh` in a process of its own; return what it found, or the last line that it wrote."""
    command = [sys.executable, __file__, "--child", what, str(work)]
    with open(work / f"{what}.log", "w") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode
    if code:
        lines = (work / f"{what}.log").read_text(errors="replace").strip().splitlines()
        words = [line for line in lines if "Error" in line] or lines or ["no words"]
        return {"error": words[-1].split("contract.errors.")[-1]}
    found: dict[str, Any] = json.loads((work / f"{what}.json").read_text())
    return found


def judge(family: str, work: Path) -> dict[str, Any]:
    """Return one row of the table."""
    make_pair(family, work)
    found = child("live", work)
    if "error" in found:
        refused = "WrongWeightsError" in found["error"]
        return {"family": family, "verdict": "refused" if refused else "wrong", "why": found["error"]}
    command = ["export", "--base", str(work / "base"), "--aligned", str(work / "aligned"), "--lam", "0.35"]
    command = [sys.executable, "-m", "lambdasweep", *command, "--out", str(work / "export")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    other = child("fresh", work)
    if "error" in other:
        return {"family": family, "verdict": "wrong", "why": other["error"]}
    exact = {"0": reference(work / "base"), "0.35": reference(work / "export"), "1": reference(work / "aligned")}
    gaps = {lam: max(abs(a - b) for a, b in zip(found[lam], exact[lam], strict=True)) for lam in LAMBDAS}
    same = found["0.35"] == other["0.35"]
    # Where a fresh engine itself is farther from transformers, the live one is as far.
    own = max(abs(a - b) for a, b in zip(other["0.35"], exact["0.35"], strict=True))
    right = same and max(gaps.values()) <= max(1e-4, 2 * own)
    return {
        "family": family,
        "verdict": "right" if right else "wrong",
        "route": found["route"],
        "why": found["why"],
        "to_fresh": 0.0 if same else max(abs(a - b) for a, b in zip(found["0.35"], other["0.35"], strict=True)),
        "to_transformers": max(gaps.values()),
        "fresh_to_transformers": own,
        "start_s": found["start_s"],
        "switch_s": found["switch_s"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| family | verdict | route | largest difference to a fresh engine | to transformers (nats) | why | last run |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        gap = f"{row['to_transformers']:.1e}" if "to_transformers" in row else ""
        cells = [
            row["family"],
            row["verdict"],
            row.get("route", ""),
            str(row.get("to_fresh", "")),
            gap,
            row.get("why", ""),
        ]
        lines.append(f"| {' | '.join([*cells, date.today().isoformat()])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--table", type=Path, help="where to write the table, in Markdown")
    parser.add_argument("--work", type=Path, help="where pairs and logs are kept")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, work = arguments.child[0], Path(arguments.child[1])
        (work / f"{what}.json").write_text(json.dumps({"live": live, "fresh": fresh}[what](work)))
        return
    names = arguments.only.split(",") if arguments.only else list(FAMILIES)
    root = arguments.work or Path(tempfile.mkdtemp(prefix="lambdasweep-families-"))
    rows = []
    for family in names:
        work = root / family
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            row = judge(family, work)
        except Exception as error:
            row = {"family": family, "verdict": "wrong", "why": f"{type(error).__name__}: {error}"[:300]}
        print(row, flush=True)
        rows.append(row)
    if arguments.table:
        arguments.table.write_text(table(rows))
    print(table(rows))
    counts = Counter(row["verdict"] for row in rows)
    gaps = [row["to_transformers"] for row in rows if "to_transformers" in row]
    summary = {"families": len(rows), **{verdict: counts[verdict] for verdict in ("right", "refused", "wrong")}}
    print(json.dumps(summary | {"worst_diff": max(gaps, default=0.0)}))


if __name__ == "__main__":
    main()
