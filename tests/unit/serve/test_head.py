"""A step of the LM head over chosen rows waits for nothing. Tests on real engines look at its numbers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serve.hooks.continuation_scores import EXTRA, ContinuationHead
from serve.hooks.seeded_draws import NUMBER, SeededDraws

# On a GPU the CPU waits for these operations, because it needs their results or the shapes of those.
DRAWN = 4  # the sampler of these tests draws this token
WAITING = {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "unique2", "is_nonzero", "equal"}


class NeverWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """This mode raises at an operation that would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__.split(".")[0] not in WAITING, f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


def runner(
    prompts: dict[str, tuple[list[int], dict[str, Any]]], starts: list[int], vocabulary: int = 11, greedy: bool = False
) -> Any:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, 4, generator=generator)
    requests = {
        name: SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args=extra), prompt_token_ids=ids, num_computed_tokens=0
        )
        for name, (ids, extra) in prompts.items()
    }
    batch = SimpleNamespace(
        req_id_to_index={name: index for index, name in enumerate(prompts)},
        req_ids=list(prompts),
        num_reqs=len(prompts),
        generators={},
        sampling_metadata=SimpleNamespace(all_greedy=greedy),
    )

    def sample(logits: torch.Tensor) -> Any:
        if greedy:
            return SimpleNamespace(sampled_token_ids=logits.nan_to_num(-torch.inf).argmax(-1, keepdim=True).int())
        logits.div_(0.7)  # vLLM's sampler works in place, too
        return SimpleNamespace(sampled_token_ids=torch.full((len(prompts), 1), DRAWN, dtype=torch.int32))

    return SimpleNamespace(
        requests=requests,
        input_batch=batch,
        query_start_loc=SimpleNamespace(np=np.array(starts)),
        discard_request_mask=SimpleNamespace(np=np.zeros(len(prompts), bool)),
        model=SimpleNamespace(compute_logits=lambda rows: rows @ weight.T),
        weight=weight,
        _get_prompt_logprobs_dict=lambda *_: {},
        _sample=sample,
        _bookkeeping_sync=lambda *_, **__: "done",
    )


def test_a_step_is_scored_without_waiting_and_right() -> None:
    one, two = [1, 2, 3, 4, 5], [6, 7, 8]
    mine = runner({"a": (one, {EXTRA: [0, 2, 9, 10]}), "b": (two, {EXTRA: [1, 0, 3]}), "c": (two, {})}, [0, 5, 8])
    head = ContinuationHead(mine)
    hidden = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
    with NeverWaits():
        mine._get_prompt_logprobs_dict(hidden, {"a": 5, "b": 3, "c": 3})
    found = head.take()
    assert found is not None
    where, scores = found
    wanted = [(0, 2, 4), (0, 3, 5), (0, 4, 9), (0, 4, 10), (1, 0, 7), (1, 1, 8), (1, 2, 3)]
    assert list(map(tuple, where.tolist())) == wanted
    exact = (hidden.double() @ mine.weight.double().T).log_softmax(-1)
    for (prompt, row, token), (logprob, rank, top1, top1_logprob) in zip(wanted, scores, strict=True):
        line = exact[row + 5 * prompt]
        assert abs(logprob - float(line[token])) < 1e-5
        assert rank == 1 + int((line > line[token]).sum())
        assert top1 == int(line.argmax())
        assert abs(top1_logprob - float(line.max())) < 1e-5
    assert [part.shape for part in head.take() or ()] == [(0, 3), (0, 4)]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_draw_is_watched_without_waiting(greedy: bool) -> None:
    ids = [1, 2, 3]
    mine = runner(
        {name: (ids, {NUMBER: number}) for name, number in (("a", 7), ("b", 8), ("c", 9))}, [0, 3, 6], 11, greedy
    )
    mine.discard_request_mask.np[2] = True  # this request's prompt is not computed to the end
    draws = SeededDraws(mine)
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(2))
    logits[0, 5] = -torch.inf
    exact = logits.double().log_softmax(-1)
    logits[1, 4] = float("nan")
    logits[2, 4] = float("nan")
    later = torch.randn(3, 11, generator=torch.Generator().manual_seed(3))
    exact_later = later.double().log_softmax(-1)
    with NeverWaits():
        mine._sample(logits)
        mine.discard_request_mask.np[2] = False  # in this step every row's token is kept
        mine._sample(later)
    taken = draws.take()
    assert taken is not None
    numbers, scores = taken
    assert numbers.tolist() == [7, 8, 7, 8, 9]
    assert scores[:, 6].tolist() == [1, 0, 1, 1, 1]
    for line, found in ((exact[0], scores[0]), *zip(exact_later, scores[2:], strict=True)):
        token, logprob, rank, top1, top1_logprob, entropy, _ = found
        assert int(token) == (int(line.argmax()) if greedy else DRAWN)
        assert abs(logprob - float(line[int(token)])) < 1e-5
        assert rank == 1 + int((line > line[int(token)]).sum())
        assert top1 == int(line.argmax())
        assert abs(top1_logprob - float(line.max())) < 1e-5
        assert abs(entropy - float(torch.special.entr(line.exp()).sum())) < 1e-5
    assert [part.shape for part in draws.take() or ()] == [(0,), (0, 7)]
