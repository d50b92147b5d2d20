"""This module gives prompts straight to vLLM's engine core, where only what the workers' hooks say of them is wanted.

`LLM.generate` renders and checks each prompt once more, names it anew, keeps a state for the text of its output, and makes
an object of that. For short prompts this takes about a third of vLLM's Python (docs/speed.md), and nobody reads any of it.
"""

import contextlib
import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

_numbers = itertools.count()  # an engine core must not see a name twice


def run_prompts(llm: Any, prompts: Iterable[tuple[Sequence[int], dict[str, Any]]]) -> int:
    """Add all prompts in order, run them, and return how many of their tokens were read from the prefix cache.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
        prompts: the tokens of each, which the model takes (`serve.refusals`), and its `extra_args`.

    Raises:
        Exception: whatever vLLM raises.
    """
    from vllm import SamplingParams

    core = llm.llm_engine.engine_core
    # vLLM makes at least one output token, which nobody reads. The parameters are made once and copied, because making them
    # checks them.
    shared = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
    waiting: set[str] = set()
    cached = 0
    try:
        for token_ids, extra_args in prompts:
            parameters = copy.copy(shared)
            parameters.extra_args = extra_args
            number = next(_numbers)
            name = f"prompt-{number}"
            waiting.add(name)
            core.add_request(_request(name, number, token_ids, parameters))
        while waiting:
            for output in core.get_output().outputs:
                if output.finished:
                    waiting.remove(output.request_id)  # another name would be what somebody left behind
                if output.prefill_stats is not None:
                    cached += output.prefill_stats.num_cached_tokens
    except BaseException:  # an interrupt, too, must not leave prompts to the next call
        with contextlib.suppress(Exception):  # a core that has failed takes nothing any more
            core.abort_requests(list(waiting))
        raise
    return cached


def _request(name: str, number: int, token_ids: Sequence[int], parameters: Any) -> Any:
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(token_ids),
        sampling_params=parameters,
        arrival_time=float(number),  # it orders prompts under a policy that goes by it
        # These have no defaults.
        mm_features=None,
        pooling_params=None,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
