"""Scores of chosen tokens, computed inside the worker from the rows of hidden states that predict them.

vLLM's own prompt logprobs run the LM head on every row of a prompt, turn all of them into log-probabilities, and leave rows
uninitialised, without a word, where the prefix cache was read. Here a prompt says which row is the first that matters
(`SamplingParams.extra_args`): the LM head runs on the rows from there on, of all prompts in a step at once, and the prefix
cache is read only as far as that row, so that it is always computed. The row of the last token can predict several tokens:
answers of one token each share one prompt.

Both halves hook into vLLM's V1 model runner and scheduler; the tests hold the results against transformers.
"""

from typing import Any

import numpy as np
import torch

_ROWS = 256  # rows of logits at a time: with a vocabulary of 128,000, 131 MB of float32
EXTRA = "lambdasweep"  # in extra_args: [number of the prompt, first row, *tokens that the last row predicts]


class ContinuationHead:
    """The worker's half: what is done with the hidden states of a step.

    Args:
        runner: vLLM's V1 model runner, which calls `_get_prompt_logprobs_dict` after each step on its last pipeline stage.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._prompt_logprobs = runner._get_prompt_logprobs_dict
        self._where: list[tuple[int, int, int]] = []  # prompt, row, token
        self._scores: list[torch.Tensor] = []  # [tokens, 4] each
        runner._get_prompt_logprobs_dict = self._after_step

    def take(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return what was scored since the last call, and forget it.

        Returns:
            int64 [T, 3]: prompt, row, token; and float64 [T, 4]: logprob in nats, rank (1 = most likely), the most likely
            token and its logprob. A row that was computed twice, after a preemption, is there twice. None on ranks that
            do not have the logits.
        """
        where, scores = np.array(self._where, np.int64).reshape(-1, 3), self._scores
        self._where, self._scores = [], []
        if len(where) and not scores:
            return None
        return where, torch.cat(scores).cpu().numpy() if scores else np.empty((0, 4))

    def _after_step(self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        rows: list[int] = []  # of hidden_states
        targets: list[int] = []
        of: list[int] = []  # which of `rows` each target belongs to
        for request_id, count in num_scheduled_tokens.items():
            request = self._runner.requests[request_id]
            asked = (request.sampling_params.extra_args or {}).get(EXTRA)
            if asked is None:
                continue
            number, first, *last = asked
            prompt = request.prompt_token_ids
            begin = request.num_computed_tokens
            offset = int(self._runner.query_start_loc.np[self._runner.input_batch.req_id_to_index[request_id]]) - begin
            for row in range(max(first, begin), min(begin + count, len(prompt))):
                for token in (prompt[row + 1],) if row + 1 < len(prompt) else last:
                    of.append(len(rows))
                    targets.append(token)
                    self._where.append((number, row, token))
                rows.append(offset + row)
        if rows:
            self._score(hidden_states, rows, of, targets)
        return self._prompt_logprobs(hidden_states, num_scheduled_tokens)

    def _score(self, hidden_states: torch.Tensor, rows: list[int], of: list[int], targets: list[int]) -> None:
        device = hidden_states.device
        place, wanted = torch.tensor(of, device=device), torch.tensor(targets, device=device)
        every = hidden_states[torch.tensor(rows, device=device)]
        for begin in range(0, len(rows), _ROWS):
            logits = self._runner.model.compute_logits(every[begin : begin + _ROWS])
            if logits is None:  # they are gathered on another rank
                continue
            # As log_softmax does: relative to the largest logit, which keeps what is subtracted small.
            highest, top1 = logits.max(-1)
            relative = logits.float().sub_(highest.float()[:, None])
            norm = relative.exp().sum(-1).log()
            here = torch.nonzero((place >= begin) & (place < begin + _ROWS)).flatten()
            for part in range(0, len(here), _ROWS):
                some = here[part : part + _ROWS]
                at, token = place[some] - begin, wanted[some]
                value = relative[at, token]
                rank = 1 + (relative[at] > value[:, None]).sum(-1)
                self._scores.append(torch.stack([value - norm[at], rank, top1[at], -norm[at]], -1).double())


def limit_prefix_reads(scheduler: Any) -> None:
    """The scheduler's half: a prompt reads the prefix cache at most up to its first row that matters."""
    manager = scheduler.kv_cache_manager
    coordinator = manager.coordinator
    computed_blocks, longest_hit = manager.get_computed_blocks, coordinator.find_longest_cache_hit
    limit: int | None = None

    def get_computed_blocks(request: Any) -> Any:
        nonlocal limit
        asked = (request.sampling_params.extra_args or {}).get(EXTRA)
        limit = asked[1] if asked else None
        return computed_blocks(request)

    def find_longest_cache_hit(block_hashes: Any, max_cache_hit_length: int) -> Any:
        return longest_hit(block_hashes, max_cache_hit_length if limit is None else min(limit, max_cache_hit_length))

    manager.get_computed_blocks, coordinator.find_longest_cache_hit = get_computed_blocks, find_longest_cache_hit
