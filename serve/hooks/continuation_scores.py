"""This module scores chosen tokens inside the worker, from the rows of hidden states that predict them.

vLLM's own prompt logprobs run the LM head on every row of a prompt, turn all of them into log-probabilities, and leave rows
uninitialised, without a word, where the prefix cache was read. Here a prompt says which row is the first that matters
(`SamplingParams.extra_args`): the LM head runs on the rows from there on, of all prompts in a step at once, and the prefix
cache is read only as far as that row, so that it is always computed. The row of the last token can predict several tokens:
answers of one token each share one prompt.

Both halves hook into vLLM's V1 model runner and scheduler; the tests hold the results against transformers.
"""

from bisect import bisect_left
from typing import Any

import numpy as np
import torch

from serve.hooks.v1_runner import V1Runner

# So many rows of logits are computed at a time. The CPU takes 256, which are 131 MB of float32 with a vocabulary of
# 128,000. A GPU wants larger products: it takes as many rows as make 512 MiB of float32, and the passes that follow need
# three times that.
_CPU_ROWS, _CUDA_LOGITS_BYTES = 256, 512 << 20
# Its entry in extra_args is [number of the prompt, first row, *tokens that the last row is asked about].
EXTRA = "lambdasweep"


class ContinuationHead:
    """The head is the worker's half: it scores from the hidden states of each step.

    Args:
        runner: vLLM's V1 model runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = V1Runner(runner)
        self._where: list[np.ndarray[Any, Any]] = []  # [tokens, 3] each: prompt, row, token
        self._scores: list[torch.Tensor] = []  # [tokens, 4] each
        self._runner.after_each_step(self._after_step)

    def take(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return what was scored since the last call, and forget it.

        Returns:
            int64 [T, 3]: prompt, row, token; and float64 [T, 4]: logprob in nats, rank (1 = most likely), the most likely
            token and its logprob. A row that was computed twice, after a preemption, is there twice. None on ranks that
            do not have the logits.
        """
        where, scores = self._where, self._scores
        self._where, self._scores = [], []
        if where and not scores:
            return None
        if not where:
            return np.empty((0, 3), np.int64), np.empty((0, 4))
        return np.concatenate(where), torch.cat(scores).cpu().numpy()

    def _after_step(self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> None:
        rows: list[int] = []  # the rows of hidden_states that are scored
        of: list[int] = []  # the place in `rows` of the row that predicts each target; ascending
        # Each target has the number of its prompt, its row there, and the token.
        numbers: list[int] = []
        places: list[int] = []
        targets: list[int] = []
        for request_id, count in num_scheduled_tokens.items():
            asked = self._runner.extra_args(request_id).get(EXTRA)
            if asked is None:
                continue
            number, first, *last = asked
            prompt, begin = self._runner.prompt(request_id)
            low, high = max(first, begin), min(begin + count, len(prompt))
            if low >= high:
                continue
            start = self._runner.first_row(request_id) - begin
            ends = high == len(prompt)
            following = prompt[low + 1 : high + 1]
            of.extend(range(len(rows), len(rows) + len(following)))
            places.extend(range(low, low + len(following)))
            targets.extend(following)
            if ends:
                of.extend([len(rows) + high - low - 1] * len(last))
                places.extend([high - 1] * len(last))
                targets.extend(last)
            numbers.extend([number] * (len(targets) - len(numbers)))
            rows.extend(range(start + low, start + high))
        if rows:
            self._where.append(np.array([numbers, places, targets], np.int64).T)
            self._score(hidden_states, rows, of, targets)

    def _score(self, hidden_states: torch.Tensor, rows: list[int], of: list[int], targets: list[int]) -> None:
        """Score a step's targets. The CPU knows where each row is, so that nothing waits for the device."""
        indices = on_device(np.array([*rows, *of, *targets], np.int64), hidden_states.device)
        index, place, wanted = torch.split(indices, [len(rows), len(of), len(targets)])
        every = hidden_states[index]
        limit = self._rows_at_a_time(hidden_states.device)
        for begin in range(0, len(rows), limit):
            logits = self._runner.logits(every[begin : begin + limit])
            if logits is None:  # the logits are gathered on another rank
                continue
            # Logits are taken relative to the largest one, as log_softmax does, so that only small numbers are subtracted.
            highest, top1 = logits.max(-1)
            relative = logits.float().sub_(highest.float()[:, None])
            norm = relative.exp().sum(-1).log()
            low, high = (bisect_left(of, row) for row in (begin, begin + limit))
            for part in range(low, high, limit):
                some = slice(part, min(part + limit, high))
                at, token = place[some] - begin, wanted[some]
                value = relative[at, token]
                rank = 1 + (relative[at] > value[:, None]).sum(-1)
                self._scores.append(torch.stack([value - norm[at], rank, top1[at], -norm[at]], -1).double())

    def _rows_at_a_time(self, device: torch.device) -> int:
        if device.type == "cpu":
            return _CPU_ROWS
        return max(_CPU_ROWS, _CUDA_LOGITS_BYTES // (4 * self._runner.vocabulary))


def on_device(values: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def limit_prefix_reads(scheduler: Any) -> None:
    """Let a prompt read the prefix cache at most up to its first row that matters. This is the scheduler's half."""
    manager = scheduler.kv_cache_manager
    coordinator = manager.coordinator
    computed_blocks, longest_hit = manager.get_computed_blocks, coordinator.find_longest_cache_hit
    limit: int | None = None

    def get_computed_blocks(request: Any, *rest: Any, **named: Any) -> Any:
        nonlocal limit
        asked = (request.sampling_params.extra_args or {}).get(EXTRA)
        limit = asked[1] if asked else None
        return computed_blocks(request, *rest, **named)

    def find_longest_cache_hit(block_hashes: Any, max_cache_hit_length: int) -> Any:
        return longest_hit(block_hashes, max_cache_hit_length if limit is None else min(limit, max_cache_hit_length))

    manager.get_computed_blocks, coordinator.find_longest_cache_hit = get_computed_blocks, find_longest_cache_hit
