"""Engines that are right, and wrong in each way, travel the start-up check. Real ones travel it in other tests."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.errors import WrongWeightsError
from merge.line import STRAIGHT, Line
from serve.verify import Probe, Verdict, Way, journey, probe_digest, probe_request, read_probe, way

BASE, ALIGNED, OTHER = Path("/base"), Path("/aligned"), Path("/other")
BOTH = {"resident": "", "reload": ""}
TRUE = {"0": 10.0, "0.35": 13.5, "1": 20.0}  # the answers of the weights at each point to the probe prompt

ON = way(BASE, {"": ALIGNED}, STRAIGHT, BASE)
REFERENCES: dict[str, Probe] = {"1": (20.0,)}  # the answer of vLLM's own load of aligned


class Engine:
    """This engine moves by routes, which are functions from a point and the weights before to the new weights."""

    def __init__(self, loaded: str, **routes: Callable[[str, float], float]) -> None:
        self.weights, self.routes, self.route = TRUE[loaded], routes, ""
        self.visited: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.fresh: Mapping[str, Probe] = REFERENCES  # what fresh engines say, where they are asked again

    def travel(
        self,
        routes: Mapping[str, str],
        references: Mapping[str, Probe] = REFERENCES,
        remembered: Collection[str] = (),
    ) -> Verdict:
        going, answer = journey(routes, ON, references, remembered), None
        while True:
            try:
                step = going.send(answer)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            answer = None
            if step.kind == "use":
                self.route = step.route
            elif step.kind == "go":
                self.weights = self.routes[self.route](step.point, self.weights)
                self.visited.append((self.route, step.point))
            elif step.kind == "ask":
                self.asked.append(step.point)
                answer = self.fresh[step.point]
            else:
                answer = (self.weights,)


def right(point: str, before: float) -> float:
    return TRUE[point]


def packed_twice(point: str, before: float) -> float:
    return TRUE[point] + 3


def writes_nothing(point: str, before: float) -> float:
    return before


def derived_stays(point: str, before: float) -> float:
    """A parameter that is derived at load stays the loaded parent's, which a return to that parent does not show."""
    return TRUE[point] + (0.5 if point != "0" else 0)


def wrong_between(point: str, before: float) -> float:
    return TRUE[point] + (0.25 if point == "0.35" else 0)


def test_the_way_of_a_pair() -> None:
    assert Way("0", {"1": ALIGNED}, "0.35") == ON
    assert way(BASE, {"": ALIGNED}, STRAIGHT, ALIGNED) == Way("1", {"0": BASE}, "0.35")


def test_the_way_where_a_parent_is_no_point() -> None:
    assert way(BASE, {"": ALIGNED}, Line(lam_map="*=0.5"), BASE) == Way("0", {}, "0.35")
    assert way(BASE, {"": ALIGNED}, Line(vocab="shared"), ALIGNED) == Way("1", {}, "0.35")
    assert way(BASE, {"": ALIGNED}, Line(vocab="shared", lam_map="*=0.5"), ALIGNED) == Way(None, {}, "0.35")


def test_the_way_of_several_aligned_checkpoints() -> None:
    found = way(BASE, {"dpo": ALIGNED, "sft": OTHER}, STRAIGHT, BASE)
    assert found.loaded == "dpo=0,sft=0"
    assert found.others == {"dpo=1,sft=0": ALIGNED, "dpo=0,sft=1": OTHER}
    assert found.between == "dpo=0.35,sft=0.35"


WRONG = [packed_twice, writes_nothing, derived_stays]


def test_the_fast_route_is_used_where_it_is_right() -> None:
    engine = Engine("0", resident=right, reload=right)
    assert engine.travel(BOTH) == Verdict("resident", "")
    assert engine.visited == [("resident", "0.35"), ("reload", "0.35"), ("resident", "1"), ("resident", "0")]


def test_what_an_engine_said_goes_with_the_route_that_it_uses() -> None:
    engines = [
        Engine("0", resident=right, reload=right),
        Engine("0", resident=wrong_between, reload=right),
        Engine("0", reload=right),
    ]
    routes: list[Mapping[str, str]] = [BOTH, BOTH, {"reload": ""}]
    said = [engine.travel(taken).said for engine, taken in zip(engines, routes, strict=True)]
    assert said == [((10.0,), (13.5,))] * 3


def test_a_digest_of_answers_is_of_their_bits() -> None:
    said = ((-1.5, -0.25), (3.0,))
    assert probe_digest(said) == probe_digest(list(said))
    assert len(probe_digest(said)) == 16
    others = [((-1.5, math.nextafter(-0.25, 0)), (3.0,)), ((-1.5,), (-0.25, 3.0)), ((3.0,), (-1.5, -0.25)), ()]
    assert len({probe_digest(said), *map(probe_digest, others)}) == 5


def test_what_one_route_leaves_behind_for_the_other_shows() -> None:
    engine = Engine("0", reload=right)
    engine.routes["resident"] = lambda point, before: TRUE[point] + (("reload", "0.35") in engine.visited)
    assert engine.travel(BOTH).route == "reload"


@pytest.mark.parametrize("wrong", WRONG)
def test_two_routes_with_the_same_mistake_prove_nothing(wrong: Callable[[str, float], float]) -> None:
    engine = Engine("0", resident=wrong, reload=wrong)
    with pytest.raises(WrongWeightsError, match=r"resident route gives other logprobs.*reload route gives other"):
        engine.travel(BOTH)


@pytest.mark.parametrize("wrong", WRONG)
def test_of_two_routes_the_right_one_is_used(wrong: Callable[[str, float], float]) -> None:
    slow = Engine("0", resident=wrong, reload=right).travel(BOTH)
    assert slow.route == "reload"
    assert "the resident route gives other logprobs than vLLM's own loader at λ = " in slow.reason
    assert Engine("0", resident=right, reload=wrong).travel(BOTH) == Verdict("resident", "")


def test_a_point_between_tells_routes_apart_that_agree_at_the_parents() -> None:
    verdict = Engine("0", resident=wrong_between, reload=right).travel(BOTH)
    assert verdict.route == "reload"
    assert verdict.reason.endswith("at λ = 0.35")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_single_route_is_held_against_both_parents(wrong: Callable[[str, float], float]) -> None:
    assert Engine("0", reload=right).travel({"reload": "--parents reload"}) == Verdict("reload", "--parents reload")
    with pytest.raises(WrongWeightsError, match="Nothing was scored"):
        Engine("0", reload=wrong).travel({"reload": ""})


def test_a_parent_of_which_nothing_is_known_is_where_routes_are_held_against_each_other() -> None:
    assert Engine("0", resident=right, reload=right).travel(BOTH, {}) == Verdict("resident", "")
    assert Engine("0", resident=derived_stays, reload=right).travel(BOTH, {}).reason.endswith("at λ = 0.35 and λ = 1")


STALE: dict[str, Probe] = {"1": (20.000002,)}  # it was computed with another number of threads


@pytest.mark.parametrize("routes", [BOTH, {"reload": "--parents reload"}])
def test_a_remembered_answer_that_nobody_gives_any_more_is_asked_afresh(routes: Mapping[str, str]) -> None:
    engine = Engine("0", resident=right, reload=right)
    fast = next(iter(routes))
    assert engine.travel(routes, STALE, {"1"}) == Verdict(fast, routes[fast])
    assert engine.asked == ["1"]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_engine_that_is_wrong_stays_so_when_its_parent_is_asked_afresh(wrong: Callable[[str, float], float]) -> None:
    both = Engine("0", resident=wrong, reload=wrong)
    with pytest.raises(WrongWeightsError, match=r"resident route gives other logprobs.*reload route gives other"):
        both.travel(BOTH, STALE, {"1"})
    # Where both contradict what the engine itself loaded, no other answer could help, and nobody is asked.
    assert both.asked == ([] if wrong is packed_twice else ["1"])
    assert Engine("0", resident=wrong, reload=right).travel(BOTH, STALE, {"1"}).route == "reload"
    assert Engine("0", resident=right, reload=wrong).travel(BOTH, STALE, {"1"}) == Verdict("resident", "")


def test_after_an_answer_afresh_routes_that_differ_between_the_parents_still_do() -> None:
    verdict = Engine("0", resident=wrong_between, reload=right).travel(BOTH, STALE, {"1"})
    assert verdict.route == "reload"
    assert verdict.reason.endswith("loader at λ = 0.35")


def test_nobody_is_asked_twice_in_one_start() -> None:
    """Neither where a route agrees with what is remembered, nor where the answer was computed in this start."""
    engine = Engine("0", resident=packed_twice, reload=right)
    assert engine.travel(BOTH, REFERENCES, {"1"}).route == "reload"
    with pytest.raises(WrongWeightsError):
        engine.travel({"resident": ""}, REFERENCES)
    assert engine.asked == []


def output(prompt: list[float], written: list[float]) -> Any:
    """Return what vLLM returns for a probe with these logprobs; token n has id n."""
    rows: list[Any] = [None, *({number: SimpleNamespace(logprob=one)} for number, one in enumerate(prompt, 1))]
    ends = [{number: SimpleNamespace(logprob=one)} for number, one in enumerate(written)]
    end = SimpleNamespace(token_ids=list(range(len(written))), logprobs=ends)
    return SimpleNamespace(prompt_token_ids=list(range(len(rows))), prompt_logprobs=rows, outputs=[end])


def test_a_probe_tells_the_smallest_difference_and_takes_nan_for_nan() -> None:
    inf, nan = math.inf, math.nan
    said = read_probe(output([-1.5, nan, -inf], [-0.5]))
    assert said == read_probe(output([-1.5, nan, -inf], [-0.5]))
    assert said != read_probe(output([-1.5, -2.0, -inf], [-0.5]))
    assert said != read_probe(output([math.nextafter(-1.5, 0), nan, -inf], [-0.5]))
    assert said != read_probe(output([-1.5, -inf, -inf], [-0.5]))
    assert said != read_probe(output([-1.5, nan, -inf], [math.nextafter(-0.5, 0)]))
    assert tuple(json.loads(json.dumps(said))) == said  # answers are remembered in this form


@pytest.mark.parametrize("length", [2, 3, 7, 40, 256])
def test_a_probe_fits_the_engine(length: int) -> None:
    ids, parameters = probe_request(512, length)
    assert len(ids) + parameters["max_tokens"] <= length
    assert min(len(ids), parameters["max_tokens"]) >= 1
    assert all(0 <= token < 512 for token in ids)
