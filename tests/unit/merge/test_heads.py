"""LM heads are known from the tensors, and each case agrees with what transformers makes of the parents."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from contract.errors import PairError
from merge.checkpoint import SINGLE, open_checkpoint
from merge.export import ExportPlan, export
from merge.heads import engine_parent, loading_flags, ties, without_flag
from merge.interpolate import interpolated_tensors
from merge.pair import Pair, open_pair
from tests.support.checkpoints import write_checkpoint
from tests.support.exported import Tensors, bits

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOKENS = torch.tensor([[5, 17, 31, 8, 2, 40, 77, 300]])


def parent(root: Path, role: str, head: str, flag: bool | None) -> Path:
    """Write a checkpoint with no head, a copy of the embedding or a head of its own, and a flag that may be absent."""
    directory = write_checkpoint(root / role, seed=len(role), tie=True)
    weights = load_file(directory / SINGLE)
    if head == "copy":
        weights[HEAD] = weights[EMBEDDING].clone()
    elif head == "own":
        weights[HEAD] = weights[EMBEDDING].flip(0).contiguous()
    save_file(weights, directory / SINGLE, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    del config["tie_word_embeddings"]
    (directory / "config.json").write_text(json.dumps(config | ({} if flag is None else {"tie_word_embeddings": flag})))
    return directory


def exported(pair: Pair, lam: str, out: Path) -> Path:
    export(ExportPlan(pair, {"base": "", "aligned": ""}, lam, "base", out, 10**9), "", 1, print)
    return out


def logprobs(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits.log_softmax(-1)
    return found


CASES = (
    # Each row has base's head and flag, aligned's head and flag, whether θ(λ) has a head, and the parents that are warned of
    ("none", True, "none", True, False, ()),
    ("own", False, "own", False, True, ()),
    ("own", None, "own", None, True, ()),
    ("copy", True, "own", None, True, ("base",)),
    ("own", True, "own", None, True, ("base",)),
    ("own", True, "own", True, True, ("base", "aligned")),
    ("copy", True, "own", True, True, ("base", "aligned")),
    ("none", True, "copy", True, False, ("aligned",)),
    ("copy", True, "none", True, False, ("base",)),
    ("copy", True, "copy", True, False, ("base", "aligned")),
    ("none", True, "own", True, True, ("base", "aligned")),
    ("none", True, "own", False, True, ("base",)),
    ("own", False, "none", True, True, ("aligned",)),
    ("none", True, "none", None, False, ("aligned",)),
)

TRANSFORMERS_SAYS = {
    ("copy", True, "own", None),
    ("own", True, "own", True),
    ("none", True, "copy", True),
    ("none", True, "own", True),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:4])))
def test_the_tensors_decide(
    tmp_path: Path, case: tuple[str, bool | None, str, bool | None, bool, tuple[str, ...]]
) -> None:
    base_head, base_flag, aligned_head, aligned_flag, has_head, told = case
    base = parent(tmp_path, "base", base_head, base_flag)
    aligned = parent(tmp_path, "aligned", aligned_head, aligned_flag)
    pair = open_pair(str(base), str(aligned))
    assert tuple(warning.replace(":", " ").split()[0] for warning in pair.warnings) == told
    assert [HEAD in one.tensors for one in pair.parents.values()] == [has_head, has_head]
    parents: list[Tensors] = [load_file(one / SINGLE) for one in (base, aligned)]
    ends = [weights.get(HEAD, weights[EMBEDDING]) for weights in parents]
    for lam in ("0", "0.35", "1"):
        out = exported(pair, lam, tmp_path / lam)
        written = load_file(out / SINGLE)
        live = dict(interpolated_tensors(pair, lam))
        assert written.keys() == live.keys()
        assert all(bits(written[name]) == bits(live[name]) for name in live)
        head = {"0": ends[0], "1": ends[1]}.get(lam)
        head = torch.lerp(ends[0].float(), ends[1].float(), 0.35).bfloat16() if head is None else head
        assert bits(written.get(HEAD, written[EMBEDDING])) == bits(head)
        assert ties(json.loads((out / "config.json").read_text())) is not has_head
    if case[:4] in TRANSFORMERS_SAYS:  # whoever loads the parents and the exports says the same of both
        assert torch.equal(logprobs(tmp_path / "1"), logprobs(aligned))
        assert torch.equal(logprobs(tmp_path / "0"), logprobs(base))


def test_an_engine_starts_with_a_parent_that_has_the_head(tmp_path: Path) -> None:
    bare, own = parent(tmp_path, "base", "none", True), parent(tmp_path, "aligned", "own", True)
    both = [open_checkpoint(str(one), "parent") for one in (bare, own)]
    assert engine_parent(both) == (1, {"tie_word_embeddings": False})
    assert engine_parent(both[:1]) == (0, {})
    assert loading_flags(both[0]) == {}
    lost = open_checkpoint(str(parent(tmp_path, "lost", "none", False)), "parent")
    assert engine_parent([both[0], lost]) == (0, {})
    assert loading_flags(lost) == {"tie_word_embeddings": True}
    assert without_flag(
        {"head_dtype": "float32", "tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}}
    ) == {"head_dtype": "float32"}


def test_no_head_anywhere_is_refused(tmp_path: Path) -> None:
    base, aligned = parent(tmp_path, "base", "none", False), parent(tmp_path, "aligned", "none", None)
    with pytest.raises(PairError) as raised:
        open_pair(str(base), str(aligned))
    assert list(raised.value.problems) == [
        "no parent has an LM head, and no config.json says that it is the embedding: add lm_head.weight, or "
        "tie_word_embeddings"
    ]
