"""Logits in bfloat16 lose what `head_dtype=float32` gives back, with vLLM's own projection under our head on the CPU.

The truth is the same product in float64, which is what a float32 engine comes to, up to the hidden states.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve.hooks.continuation_scores import EXTRA, ContinuationHead

PROMPTS, HIDDEN, VOCABULARY = 200, 256, 2000
LETTERS = [11, 12, 13, 14]


@dataclass(frozen=True)
class Scored:
    """These are a head's logprobs of each prompt's letters, and the true ones."""

    logprobs: np.ndarray[Any, Any]  # [prompts, letters]
    exact: np.ndarray[Any, Any]
    highest: float  # the greatest of all logits

    @property
    def ties(self) -> int:
        """Return how many prompts have two letters of the same logprob."""
        return sum(len(set(row)) < len(row) for row in self.logprobs.tolist())

    @property
    def off(self) -> np.ndarray[Any, Any]:
        return np.abs(self.logprobs - self.exact)


def scored(head_dtype: torch.dtype) -> Scored:
    """Score letters whose logits are about a tenth apart, among logits of a model's usual size."""
    vllm = pytest.importorskip("vllm.model_executor.layers.logits_processor")
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(PROMPTS, HIDDEN, generator=generator).bfloat16()
    weight = 0.3 * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    spread = torch.randn(len(LETTERS), HIDDEN, generator=generator)
    weight[LETTERS] = weight[LETTERS[0]] + 0.006 * spread
    head = torch.nn.Module()
    head.weight = torch.nn.Parameter(weight.bfloat16(), requires_grad=False)
    head.quant_method = UnquantizedEmbeddingMethod()
    head.cpu_linear = torch.nn.functional.linear  # vLLM sets this where oneDNN packs nothing
    processor = SimpleNamespace(head_dtype=head_dtype)
    names = [f"p{number}" for number in range(PROMPTS)]
    runner = SimpleNamespace(
        requests={
            name: SimpleNamespace(
                sampling_params=SimpleNamespace(extra_args={EXTRA: [number, 0, *LETTERS]}),
                prompt_token_ids=[1],
                num_computed_tokens=0,
            )
            for number, name in enumerate(names)
        },
        input_batch=SimpleNamespace(req_id_to_index={name: number for number, name in enumerate(names)}),
        query_start_loc=SimpleNamespace(np=np.arange(PROMPTS)),
        model=SimpleNamespace(
            compute_logits=lambda rows: vllm.LogitsProcessor._apply_head(processor, head, rows, None)
        ),
        _get_prompt_logprobs_dict=lambda *_: {},
    )
    mine = ContinuationHead(runner)
    runner._get_prompt_logprobs_dict(hidden, dict.fromkeys(names, 1))
    found = mine.take()
    assert found is not None
    where, values = found
    assert where[:, 2].reshape(PROMPTS, -1).tolist() == [LETTERS] * PROMPTS
    logits = hidden.double() @ head.weight.double().T
    exact = logits.log_softmax(-1)[:, LETTERS].numpy()
    return Scored(values[:, 0].reshape(PROMPTS, -1), exact, float(logits.abs().max()))


def test_logits_in_bfloat16_tie_letters_and_those_in_float32_do_not() -> None:
    rounded, whole = scored(torch.bfloat16), scored(torch.float32)
    assert 16 < rounded.highest < 32
    assert rounded.ties > PROMPTS / 5  # their logits come in steps of 0.03 at 4 to 8, and of twice that above
    assert whole.ties == 0
    assert rounded.off.max() > 0.03
    assert rounded.off.mean() > 0.003
    assert whole.off.max() < 3e-5
    # For some prompts another letter is the likeliest.
    assert (rounded.logprobs.argmax(1) != rounded.exact.argmax(1)).sum() > PROMPTS / 50
    assert (whole.logprobs.argmax(1) == whole.exact.argmax(1)).all()
