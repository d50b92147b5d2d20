"""This module makes vLLM's sampler right about requests with a seed: it draws once for each kept token, from numbers only.

Each seeded request has a generator of its own. vLLM lets it draw in every step, also where only a part of the prompt was
computed, and then takes the draw back, which fails on the CPU (whose generators have no offset) and on the GPU goes by a
count of steps. Here a generator is put aside in such a step, so that a request's n-th token is made with its n-th draw,
however the prompt was cut. NaN does not stop the sampler either: it picks some token. Here it is told which rows of logits
hold NaN or infinity, or nothing but −∞.

Each token that is kept is also scored from the row of logits that it was drawn from, before the sampler divides or masks
them. Its scores are therefore those of the model at temperature 1, and they cost no second pass through the model.

`SeededDraws` hooks into vLLM's V1 model runner, on each rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serve.hooks.continuation_scores import on_device
from serve.hooks.v1_runner import V1Runner

NUMBER = "lambdasweep_sample"  # its entry in extra_args is the number of a request, whose draws are then recorded

# So many rows of logits are computed at a time. On the CPU a few rows stay in a core's cache; a GPU takes as many as make
# 512 MiB of float32.
_CPU_ROWS, _CUDA_LOGITS_BYTES = 8, 512 << 20
_LEAST = -1e4  # its exp is 0, and so is the product of both; −∞ would give NaN there


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to be drawn."""

    token_ids: Sequence[int]  # the prompt's tokens
    seed: int


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """The record holds what the model at temperature 1 says of the N tokens of a sample."""

    logprob: npt.NDArray[np.float32]  # [N] nats
    rank: npt.NDArray[np.int32]  # [N] 1 = most likely
    top1: npt.NDArray[np.int32]  # [N] the most likely token
    top1_logprob: npt.NDArray[np.float32]  # [N] nats
    entropy: npt.NDArray[np.float32]  # [N] nats: the entropy of the distribution over the whole vocabulary


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample."""

    token_ids: tuple[int, ...]  # the stop token included
    finish_reason: str  # stop, length
    is_finite: bool  # False where a token came from logits of NaN or infinity: the sample then means nothing
    record: TokenRecord


@dataclass(frozen=True, slots=True)
class Draws:
    """The results of several draws, in the order of the draws."""

    drawn: list[Drawn]
    prompt_tokens: int  # the tokens of all prompts
    cached_tokens: int  # how many of them were read from the prefix cache


class SeededDraws:
    """This is the worker's half of sampling.

    Args:
        runner: vLLM's V1 model runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = V1Runner(runner)
        self._aside: dict[int, torch.Generator] = {}
        self._numbers: list[int] = []  # the request's number for each token that was drawn, in the order of the steps
        self._scores: list[torch.Tensor] = []  # [tokens, 7] each; they stay on the device
        self._runner.around_sampling(self._watch, self._restore)

    def take(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None:
        """Return what was drawn since the last call, and forget it.

        Returns:
            The number of the request of each token [T], in the order in which they were drawn; and float64 [T, 7]: the
            token, its logprob in nats, its rank, the most likely token, its logprob, the entropy in nats, and whether the
            logits were numbers. None on ranks that do not have the logits.
        """
        numbers, scores = self._numbers, self._scores
        self._numbers, self._scores = [], []
        if numbers and not scores:
            return None
        return np.array(numbers, np.int64), torch.cat(scores).cpu().numpy() if scores else np.empty((0, 7))

    def _watch(self, sample: Callable[[], Any], logits: torch.Tensor | None) -> Any:
        partial, generators = self._runner.is_partial, self._runner.generators
        self._aside = {row: generators.pop(row) for row in np.flatnonzero(partial).tolist() if row in generators}
        rows, numbers = self._watched(self._runner.sampled, partial)
        if logits is None or not rows:  # logits are gathered on another rank
            self._numbers += numbers
            return sample()
        index = on_device(np.array(rows, np.int64), logits.device)
        every = len(rows) == len(logits)
        is_greedy = self._runner.is_greedy
        kept = logits if every else logits[index]
        if every and not is_greedy:  # the sampler then divides and masks the logits in place
            kept = logits.clone()
        sampled = sample()
        self._numbers += numbers
        self._score(kept, sampled.sampled_token_ids[:, 0][index].long(), is_greedy)
        return sampled

    def _watched(self, request_ids: list[str], partial: np.ndarray[Any, Any]) -> tuple[list[int], list[int]]:
        """Return the rows of the logits whose tokens are kept, and the numbers of their requests."""
        rows, numbers = [], []
        for row, request_id in enumerate(request_ids):
            number = self._runner.extra_args(request_id).get(NUMBER)
            if number is not None and not partial[row]:
                rows.append(row)
                numbers.append(number)
        return rows, numbers

    def _score(self, logits: torch.Tensor, token: torch.Tensor, is_greedy: bool) -> None:
        """Score a token [rows] for each row of logits, as `take` returns it, without ever waiting for the device.

        Where every token is known to be the likeliest, ranks are not searched for, which saves two thirds of the time on
        a CPU.
        """
        limit = _CPU_ROWS
        if logits.device.type != "cpu":
            limit = max(limit, _CUDA_LOGITS_BYTES // (4 * logits.shape[1]))
        for begin in range(0, len(logits), limit):
            part, drawn = logits[begin : begin + limit], token[begin : begin + limit, None]
            # Logits are taken relative to the largest one, as log_softmax does, so that only small numbers are subtracted.
            highest, top1 = (part.gather(-1, drawn)[:, 0], drawn[:, 0]) if is_greedy else part.max(-1)
            relative = part.float() - highest.float()[:, None]
            value = relative.gather(-1, drawn)
            rank = torch.ones_like(top1) if is_greedy else 1 + (relative > value).sum(-1)
            odds = relative.clamp_(min=_LEAST).exp()
            total = odds.sum(-1)
            norm = total.log()
            entropy = norm - (odds.mul_(relative)).sum(-1) / total
            is_finite = highest.isfinite() & total.isfinite()  # NaN where there is any
            columns = [drawn[:, 0], value[:, 0] - norm, rank, top1, -norm, entropy, is_finite]
            self._scores.append(torch.stack([column.double() for column in columns], -1))

    def _restore(self) -> None:
        self._runner.generators.update(self._aside)
        self._aside = {}
