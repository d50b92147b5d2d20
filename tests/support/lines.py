"""This makes a tiny pair whose vocabulary is shared in part, and its θ(λ) with none of the code under test."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from merge.line import Line
from tests.support.checkpoints import VOCAB, write_checkpoint

# The map is written by hand for the two layers of the tiny pair; tensors that it does not name move with λ.
MAP = "layers.1=0.4,layers.0.mlp=0,layers.0.self_attn.k_proj=-0.5,embed=0.75"
WEIGHTS = {"embed_tokens": "0.75", "layers.0.mlp": "0", "layers.0.self_attn.k_proj": "-0.5", "layers.1": "0.4"}
EXTRA = 3  # aligned has these rows, and base has not
OTHER = {17: "Ā!", 331: "<|turn|>"}  # aligned has these strings at ids that have another string, or none, in base


def write_pair(root: Path, tied: bool, shared: bool) -> tuple[Path, Path]:
    base = write_checkpoint(root / "base", seed=0, tie=tied)
    aligned = write_checkpoint(root / "aligned", seed=1, tie=tied, vocab=VOCAB + EXTRA * shared)
    if shared:
        file = aligned / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["added_tokens"] += [{**tokenizer["added_tokens"][0], "id": at, "content": OTHER[at]} for at in OTHER]
        file.write_text(json.dumps(tokenizer))
    return base, aligned


def made(base: Path, aligned: Path, line: Line, lam: str) -> dict[str, torch.Tensor]:
    """Return θ(λ) of a tiny pair, tensor by tensor, computed in fp32 and rounded once."""
    one, two = load_file(base / "model.safetensors"), load_file(aligned / "model.safetensors")
    found = {}
    for name, there in two.items():
        weights = [weight for part, weight in WEIGHTS.items() if part in name] if line.lam_map else []
        at = float(lam) * float(weights[0] if weights else 1)
        has_rows = "embed_tokens" in name or "lm_head" in name
        rows = [
            row
            for row in range(VOCAB if has_rows else len(there))
            if not (has_rows and is_shared(line) and row in OTHER)
        ]
        here, other = one[name][rows], there[rows]
        theta = here if at == 0 else other if at == 1 else between(here, other, at, line.method)
        whole = there.clone()
        whole[rows] = theta
        found[name] = whole
    return found


def is_shared(line: Line) -> bool:
    return line.vocab == "shared"


def between(one: torch.Tensor, two: torch.Tensor, at: float, method: str) -> torch.Tensor:
    a, b = one.double().flatten(), two.double().flatten()
    cosine = float(a @ b / (a.norm() * b.norm()))
    if method == "linear" or abs(cosine) > 0.9995:
        return torch.lerp(one.float(), two.float(), at).to(one.dtype)
    angle = math.acos(cosine)
    sines = [math.sin((1 - at) * angle) / math.sin(angle), math.sin(at * angle) / math.sin(angle)]
    return (one.float() * sines[0] + two.float() * sines[1]).to(one.dtype)
