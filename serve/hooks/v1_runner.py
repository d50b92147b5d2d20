"""What the hooks need from a model runner, taken from vLLM's V1 runner. Another runner would get a module like this.

docs/design.md says what a runner must give, and `tests/unit/serve/test_vllm_surface.py` checks the names that are used here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


class V1Runner:
    """Wraps `GPUModelRunner` of `vllm.v1.worker.gpu_model_runner`, which the CPU's runner inherits from."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def after_each_step(self, then: Callable[[torch.Tensor, dict[str, int]], None]) -> None:
        """Have a function called after each step, on the last pipeline stage.

        It gets the hidden states of the step's rows, and the number of tokens computed in it for each request.
        """
        self._then, self._prompt_logprobs = then, self._runner._get_prompt_logprobs_dict
        self._runner._get_prompt_logprobs_dict = self._after_step

    def around_sampling(
        self, sample: Callable[[Callable[[], Any], torch.Tensor | None], Any], after: Callable[[], None]
    ) -> None:
        """Have functions called in the place of the sampler, and after its tokens are noted.

        Args:
            sample: it gets the sampler as a function without arguments, and its logits, None on ranks that have none; it
                returns what the sampler returns.
            after: it is called when the step's tokens are noted.
        """
        self._sampling, self._noted = sample, after
        self._sampler, self._bookkeeping = self._runner._sample, self._runner._bookkeeping_sync
        self._runner._sample, self._runner._bookkeeping_sync = self._sample, self._note

    def _after_step(self, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        self._then(hidden_states, num_scheduled_tokens)
        return self._prompt_logprobs(hidden_states, num_scheduled_tokens)

    def _sample(self, logits: torch.Tensor | None, *rest: Any, **named: Any) -> Any:
        return self._sampling(lambda: self._sampler(logits, *rest, **named), logits)

    def _note(self, *arguments: Any, **named: Any) -> Any:
        done = self._bookkeeping(*arguments, **named)
        self._noted()
        return done

    def extra_args(self, request_id: str) -> dict[str, Any]:
        """Return what a request's sampling parameters say beside vLLM's own."""
        return self._runner.requests[request_id].sampling_params.extra_args or {}

    def prompt(self, request_id: str) -> tuple[Sequence[int], int]:
        """Return the tokens of a request's prompt, and how many of the request's were computed before this step."""
        request = self._runner.requests[request_id]
        return request.prompt_token_ids, request.num_computed_tokens

    def first_row(self, request_id: str) -> int:
        """Return where a request's rows begin in the hidden states of this step."""
        return int(self._runner.query_start_loc.np[self._runner.input_batch.req_id_to_index[request_id]])

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the LM head's logits of some rows; None on ranks that do not gather them."""
        logits: torch.Tensor | None = self._runner.model.compute_logits(hidden_states)
        return logits

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens."""
        size: int = self._runner.model_config.get_vocab_size()
        return size

    @property
    def sampled(self) -> list[str]:
        """Return the requests of this step in the order of the sampler's rows."""
        ids: list[str] = self._runner.input_batch.req_ids
        return ids

    @property
    def is_partial(self) -> np.ndarray[Any, Any]:
        """Return for each of these whether its prompt is not at its end, so that its token will be dropped."""
        partial: np.ndarray[Any, Any] = self._runner.discard_request_mask.np[: self._runner.input_batch.num_reqs]
        return partial

    @property
    def generators(self) -> dict[int, torch.Generator]:
        """Return the sampler's own dict of random generators by row."""
        generators: dict[int, torch.Generator] = self._runner.input_batch.generators
        return generators

    @property
    def is_greedy(self) -> bool:
        """Tell whether all requests of this step take the most likely token."""
        return bool(self._runner.input_batch.sampling_metadata.all_greedy)
