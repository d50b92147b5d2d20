"""What vLLM's sampler needs to be right about requests with a seed: draws for tokens that are kept, from numbers only.

Each seeded request has a generator of its own. vLLM lets it draw in every step, also where only a part of the prompt was
computed, and then takes the draw back, which fails on the CPU (whose generators have no offset) and on the GPU goes by a
count of steps. Here a generator is put aside in such a step, so that a request's n-th token is made with its n-th draw,
however the prompt was cut. And NaN is no reason for the sampler to stop: it picks some token. Here the rows of logits that
hold NaN or infinity, or nothing but −∞, are told.

`SeededDraws` hooks into vLLM's V1 model runner, on each rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

NUMBER = "lambdasweep_sample"  # in extra_args: the number of the request, which is then watched


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to be drawn."""

    token_ids: Sequence[int]  # of the prompt
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample."""

    token_ids: tuple[int, ...]  # the stop token included
    finish_reason: str  # stop, length
    is_finite: bool  # False: a token came from logits of NaN or infinity, and nothing of it means anything


@dataclass(frozen=True, slots=True)
class Draws:
    """What some draws came to, in their order."""

    drawn: list[Drawn]
    prompt_tokens: int  # of all prompts
    cached_tokens: int  # of those, read from the prefix cache


class SeededDraws:
    """The worker's half of sampling.

    Args:
        runner: vLLM's V1 model runner, which calls `_sample` and then `_bookkeeping_sync` in each step.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._sample, self._bookkeeping = runner._sample, runner._bookkeeping_sync
        self._aside: dict[int, torch.Generator] = {}
        # Numbers of requests, the rows of their logits, and for each row whether it is bad; that stays on the device.
        self._watched: list[tuple[list[int], list[int], torch.Tensor]] = []
        runner._sample, runner._bookkeeping_sync = self._before, self._after

    def take(self) -> set[int]:
        """Return the numbers of the requests that a token was drawn for from no numbers, since the last call."""
        watched, self._watched = self._watched, []
        bad: list[bool] = torch.cat([flags for _, _, flags in watched]).tolist() if watched else []
        found, start = set(), 0
        for numbers, rows, flags in watched:
            found |= {number for number, row in zip(numbers, rows, strict=True) if bad[start + row]}
            start += len(flags)
        return found

    def _before(self, logits: torch.Tensor | None, *rest: Any) -> Any:
        batch = self._runner.input_batch
        partial = self._runner.discard_request_mask.np[: batch.num_reqs]
        generators = batch.generators  # the sampler's own dict
        self._aside = {row: generators.pop(row) for row in np.flatnonzero(partial).tolist() if row in generators}
        if logits is not None:  # they are gathered on another rank
            self._watch(logits, batch.req_ids, partial)
        return self._sample(logits, *rest)

    def _watch(self, logits: torch.Tensor, request_ids: list[str], partial: np.ndarray[Any, Any]) -> None:
        rows, numbers = [], []
        for row, request_id in enumerate(request_ids):
            parameters = self._runner.requests[request_id].sampling_params
            number = (parameters.extra_args or {}).get(NUMBER)
            if number is not None and not partial[row]:
                rows.append(row)
                numbers.append(number)
        if rows:
            self._watched.append((numbers, rows, ~logits.amax(-1).isfinite()))  # NaN where there is any

    def _after(self, *arguments: Any, **named: Any) -> Any:
        done = self._bookkeeping(*arguments, **named)
        self._runner.input_batch.generators.update(self._aside)
        self._aside = {}
        return done
