"""The LM head over chosen rows: which operations a step takes. Its numbers are held elsewhere, on real engines."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serve.hooks.continuation_scores import EXTRA, ContinuationHead
from serve.hooks.seeded_draws import NUMBER, SeededDraws

# On a GPU the CPU waits for these: their results, or the shapes of those, must be known to go on.
WAITING = {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique", "unique2", "is_nonzero", "equal"}


class NeverWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at an operation that would wait for a GPU, which none does on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__.split(".")[0] not in WAITING, f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


def runner(prompts: dict[str, tuple[list[int], dict[str, Any]]], starts: list[int], vocabulary: int = 11) -> Any:
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
    )
    return SimpleNamespace(
        requests=requests,
        input_batch=batch,
        query_start_loc=SimpleNamespace(np=np.array(starts)),
        discard_request_mask=SimpleNamespace(np=np.zeros(len(prompts), bool)),
        model=SimpleNamespace(compute_logits=lambda rows: rows @ weight.T),
        weight=weight,
        _get_prompt_logprobs_dict=lambda *_: {},
        _sample=lambda *_: "sampled",
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


def test_a_draw_is_watched_without_waiting() -> None:
    ids = [1, 2, 3]
    mine = runner({name: (ids, {NUMBER: number}) for name, number in (("a", 7), ("b", 8), ("c", 9))}, [0, 3, 6])
    mine.discard_request_mask.np[2] = True  # its prompt is not computed to the end
    draws = SeededDraws(mine)
    logits = torch.zeros(3, 11)
    logits[1, 4] = float("nan")
    logits[2, 4] = float("nan")
    with NeverWaits():
        mine._sample(logits)
        mine._sample(torch.zeros(3, 11))
    assert draws.take() == {8}
    assert draws.take() == set()
