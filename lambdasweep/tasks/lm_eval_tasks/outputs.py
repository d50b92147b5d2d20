"""This module settles how a model writes the answers of a task of lm-eval, and what they are right by."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lambdasweep.tasks.answers import MAX_TOKENS
from lambdasweep.tasks.documents import temperature_problems, unescaped
from lambdasweep.tasks.lm_eval_tasks.right_outputs import judged_by, try_grading
from lambdasweep.tasks.lm_eval_tasks.spec import GENERATE_UNTIL, LmEvalSpec, first_line, task_error
from lambdasweep.tasks.verbalised import pattern_problems

_TRIED = 32  # so many documents are looked at for what judges their outputs


@dataclass(frozen=True, slots=True)
class AskedDocument:
    """A document with its number in lm-eval's order, and with its instances, which are all that lm-eval asks about it."""

    number: int
    doc: Any
    instances: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Outputs:
    """How the answers of a task are written, by its `generation_kwargs` as lm-eval's models read them.

    Attributes:
        repeats: the outputs that lm-eval takes of each document.
        until: without the text of the end token, which a tokenizer has.
        metric: what an output is right by, as lm-eval's `metric,filter`.
        filters: lm-eval's filters that can do with a single output.
    """

    repeats: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    until: tuple[str, ...]
    normaliser: str
    metric: str
    filters: tuple[str, ...]
    equivalence: str | None = None
    think_end_token: str | None = None
    p_true: str | None = None
    verbalised: str | None = None

    @property
    def samples(self) -> int:
        """Return how many outputs are made: where the likeliest tokens are taken, all would be the same."""
        return self.repeats if self.temperature else 1


def outputs_of(name: str, task: Any, asked: Sequence[AskedDocument], spec: LmEvalSpec) -> Outputs | None:
    """Settle how the answers of a task are written, and try its filters and metrics on outputs that are made up."""
    instances = [instance for one in asked for instance in one.instances]
    if not instances or instances[0].request_type != GENERATE_UNTIL:
        return None
    from lm_eval.models.utils import normalize_gen_kwargs

    if spec.verbalised_suffix is not None:
        raise task_error(
            spec, [f"{name} has prompts of its own: leave verbalised_suffix out, and ask in its doc_to_text"]
        )
    if problems := pattern_problems(spec.verbalised, None):
        raise task_error(spec, problems)
    if any(len(one.instances) != 1 for one in asked):
        raise task_error(spec, [f"{name} asks several times for outputs of a document: only one is asked for here"])
    wanted = instances[0].args[1]
    if any(instance.args[1] != wanted for instance in instances):
        raise task_error(
            spec, [f"{name} has other generation_kwargs for some documents, and one set for all is needed here"]
        )
    changes = generation_kwargs(spec)  # a task that makes its own requests may have left these out
    others = {"max_new_tokens", "max_tokens", "max_completion_tokens"} if "max_gen_toks" in changes else set()
    wanted = {key: value for key, value in wanted.items() if key not in others} | changes
    found = dict(normalize_gen_kwargs(wanted, MAX_TOKENS))
    if found.get("num_beams") == 1:
        del found["num_beams"]
    strange = sorted(found.keys() - {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})
    if strange:
        raise task_error(spec, [f"{name} has {', '.join(strange)} in its generation_kwargs, which is not done here"])
    temperature = float(found.get("temperature", 1.0)) if found["do_sample"] else 0.0
    problems = [f"{name}: {problem}" for problem in temperature_problems(temperature)]
    if problems:
        raise task_error(spec, problems)
    repeats = int(instances[0].repeats or 1)
    try:
        metric, filters = try_grading(task, asked[0].doc, asked[0].instances[0], repeats)
        # A task may treat every n-th document otherwise, so they are taken at random.
        some = random.Random(0).sample(asked, min(len(asked), _TRIED))
        judged = [(one.number, judged_by(task, one.doc, one.instances[0], metric)) for one in some]
    except Exception as error:  # the task's own functions, and the libraries that they need, may raise anything
        problem = (
            f"{name}: lm-eval cannot make metrics of {repeats} outputs ({type(error).__name__}: {first_line(error)})"
        )
        hint = ": give --repeats as many as its filters take" if isinstance(error, AssertionError) else ""
        raise task_error(spec, [problem + hint]) from error
    if unlike := [f"document {number} {why}" for number, why in judged if why]:
        told = f"{name}: outputs would be right where {metric.partition(',')[0]} is 1, and {unlike[0]}"
        raise task_error(spec, [f"{told}: give a task whose documents have one metric"])
    return Outputs(
        repeats=repeats,
        temperature=temperature,
        top_p=float(found.get("top_p", 1.0)) if temperature else 1.0,
        top_k=int(found.get("top_k", 0)) if temperature else 0,
        max_tokens=int(found["max_gen_toks"]),
        until=tuple(found["until"]),
        normaliser=spec.normaliser or "auto",
        metric=metric,
        filters=filters,
        equivalence=spec.equivalence,
        think_end_token=spec.think_end_token,
        p_true=spec.p_true,
        verbalised=spec.verbalised,
    )


def generation_kwargs(spec: LmEvalSpec) -> dict[str, Any]:
    """Return the generation_kwargs that the user gave."""
    found: dict[str, Any] = {}
    if spec.temperature is not None:
        found |= {"do_sample": spec.temperature > 0, "temperature": float(spec.temperature)}
    if spec.max_tokens is not None:
        found["max_gen_toks"] = spec.max_tokens
    if spec.until is not None:
        found["until"] = [unescaped(spec.until)] if spec.until else []
    return found
