"""This module checks whether a route makes the weights that vLLM loads by itself. Every engine is checked before it scores.

Two routes of ours that agree prove nothing: both may make the same mistake. So each is held against vLLM's own loads, of
every parent. An engine answers a probe prompt first with the weights that vLLM loaded, before anything of ours has touched
them; what it must answer at the other parents is known from engines of their own (`serve.reference`), which loaded those
parents and ended. Then each route takes it to the other parents, to a point between, where no load of vLLM's is at hand and
the routes are held against each other, and back to where it began. All answers must have the same bits. A route that fails
is not used, and where none is left nothing is scored; where that rests on an answer of an earlier start, which may have been
computed in another way, the parent is asked once more before.

The journey is a generator that says what to do next, so that an engine in this process and one behind a server, where
everything is asynchronous, take the same one.
"""

import hashlib
import math
import struct
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from contract.errors import WrongWeightsError
from contract.points import named, parents
from merge.line import Line

# The probe prompt has so many tokens, and the model then writes so many: some weights are used in only one of the two.
_PROMPT_TOKENS, _WRITTEN_TOKENS = 48, 4
_BETWEEN = "0.35"  # this is no parent, and at 0.5 fused and unfused multiply-adds would agree by chance

Probe = tuple[float, ...]
"""A probe is an answer to the probe prompt: the logprob (nats) of each of its tokens but the first, then the id and the
logprob of each token that the model writes at temperature 0."""
_NAN = 1.0  # it stands for a logprob that is NaN, so that equal answers are equal; no real logprob is positive


@dataclass(frozen=True, slots=True)
class Way:
    """The way says where an engine is taken. Points are canonical."""

    loaded: str | None
    """The point that has the weights which vLLM loaded; None where no point has exactly those."""
    others: Mapping[str, Path]
    """The other parents: for each point the checkpoint that has its weights."""
    between: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step says what is to be done next."""

    kind: Literal["use", "go", "probe", "ask"]
    """use a route from now on; go to a point; answer the probe prompt; have an engine of its own answer it for a point."""
    route: str = ""
    point: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict says how the engine moves from now on."""

    route: str
    reason: str  # why the route is not the first one; "" where it is
    said: tuple[Probe, ...] = field(default=(), compare=False)
    """The engine's answers to the probe prompt, with the weights that vLLM loaded and between the parents."""


Journey = Generator[Step, Probe | None, Verdict]


def way(base: Path, aligned: Mapping[str, Path], line: Line, model: Path) -> Way:
    """Return where an engine that loaded `model`, one of the parents, is to be taken."""
    points = parents(aligned)
    found: dict[str, Path] = {}
    if not line.has_aligned_shapes:  # elsewhere base has another vocabulary than θ(0)
        found[points["base"]] = base
    if not line.lam_map:  # elsewhere λ = 1 is another point than aligned
        found |= {named(dict.fromkeys(aligned, "0") | {name: "1"}): path for name, path in aligned.items()}
    loaded = next((point for point, path in found.items() if path == model), None)
    others = {point: path for point, path in found.items() if point != loaded}
    return Way(loaded, others, named(dict.fromkeys(aligned, _BETWEEN)))


def journey(
    routes: Mapping[str, str], on: Way, references: Mapping[str, Probe], remembered: Collection[str] = ()
) -> Journey:
    """Travel, and settle which route is used.

    Args:
        routes: those that the engine can take, the fastest first, two at most; for each why there is nothing faster, or "".
        on: the way.
        references: what engines of their own said of the way's other parents, by point.
        remembered: the points of those that said it in an earlier start.

    Raises:
        WrongWeightsError: no route makes the weights that vLLM loads. Says what is wrong with each.
    """
    wanted = dict(references)
    untouched = yield from _answer(Step("probe"))
    if on.loaded is not None:
        wanted[on.loaded] = untouched  # the start comes last, because what another parent leaves behind shows there
    # Where no load of vLLM's is at hand, the routes are held against each other.
    between = (on.between, *(point for point in on.others if point not in references))
    crossed: dict[str, list[Probe]] = {}
    travelled: dict[str, dict[str, Probe]] = {}

    def visit(route: str, point: str) -> Generator[Step, Probe | None, Probe]:
        yield Step("use", route=route)
        yield Step("go", point=point)
        return (yield from _answer(Step("probe")))

    def travel(route: str) -> Generator[Step, Probe | None, None]:
        travelled[route] = {}
        for point in wanted:
            travelled[route][point] = yield from visit(route, point)

    def cross(route: str) -> Generator[Step, Probe | None, None]:
        crossed[route] = []
        for point in between:
            crossed[route].append((yield from visit(route, point)))

    def wrong(route: str) -> list[str]:
        return [point for point, said in travelled[route].items() if said != wanted[point]]

    fast, *slower = routes
    for route in routes:
        yield from cross(route)
    # The route is used only now, so that what another route leaves behind in the engine shows, too.
    yield from travel(fast)
    for slow in slower:
        if wrong(fast) or crossed[fast] != crossed[slow]:
            yield from travel(slow)
    # A route that contradicts what was answered in this start is wrong, whatever a remembered answer would be now.
    in_doubt = [wrong(route) for route in travelled if set(wrong(route)) <= set(remembered)]
    if in_doubt and all(map(wrong, travelled)):
        doubted = {point for points in in_doubt for point in points}
        for point in (point for point in wanted if point in doubted):
            wanted[point] = yield from _answer(Step("ask", point=point))
    if all(map(wrong, travelled)):
        raise WrongWeightsError(_message({route: wrong(route) for route in travelled}))
    used = fast
    for slow in slower:
        # Nothing that a route says elsewhere counts, if it is wrong at a parent.
        if slow in travelled and not wrong(slow) and (wrong(fast) or crossed[fast] != crossed[slow]):
            used = slow
    reason = routes[used]
    if used != fast:
        said = zip(between, crossed[fast], crossed[used], strict=True)
        reason = _wrong(fast, wrong(fast) or [point for point, one, two in said if one != two])
    return Verdict(used, reason, (untouched, crossed[used][0]))


def _wrong(route: str, points: list[str]) -> str:
    where = " and ".join(f"λ = {point}" for point in points)
    return f"the {route} route gives other logprobs than vLLM's own loader at {where}"


def _message(wrong: Mapping[str, list[str]]) -> str:
    return (
        f"θ(λ) cannot be made live for this architecture: {'; '.join(_wrong(*one) for one in wrong.items())}. Nothing was "
        "scored. Score checkpoints that are written to disk instead: lambdasweep export, then lambdasweep score --model"
    )


def _answer(step: Step) -> Generator[Step, Probe | None, Probe]:
    answer = yield step
    if answer is None:
        raise TypeError(f"nothing was answered to {step.kind}")
    return answer


def probe_digest(said: Sequence[Probe]) -> str:
    """Return a digest of the bits of some answers, 16 hexadecimal digits."""
    numbers = [number for answer in said for number in (float(len(answer)), *answer)]
    return hashlib.sha256(struct.pack(f"<{len(numbers)}d", *numbers)).hexdigest()[:16]


def probe_request(vocab_size: int, max_model_len: int) -> tuple[list[int], dict[str, Any]]:
    """Return a fixed prompt, of different tokens from all over the vocabulary, and the arguments of its `SamplingParams`."""
    written = min(_WRITTEN_TOKENS, max_model_len - 1)
    length = min(_PROMPT_TOKENS, max_model_len - written)
    ids = [(11 + 7919 * position) % vocab_size for position in range(length)]
    return ids, {
        "max_tokens": written,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "logprobs": 0,
        "ignore_eos": True,
        "detokenize": False,
    }


def read_probe(output: Any) -> Probe:
    """Return what a vLLM `RequestOutput` of `probe_request` says. NaN counts as one value, which equals itself."""
    ids, (end,) = output.prompt_token_ids, output.outputs
    said = [row[token].logprob for row, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    for row, token in zip(end.logprobs, end.token_ids, strict=True):
        said += [float(token), row[token].logprob]
    return tuple(_NAN if math.isnan(value) else value for value in said)
