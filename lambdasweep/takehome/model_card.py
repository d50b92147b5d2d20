"""This module writes the model card of an exported θ(λ)."""

import json
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from contract.formula import formula
from contract.points import coordinates

if TYPE_CHECKING:
    from lambdasweep.takehome.point import MeasuredPoint
    from merge.checkpoint import Checkpoint
    from merge.pair import Pair

_SPLIT = "all"


def model_card(pair: "Pair", fingerprints: dict[str, str], lam: str, like: str, run: "MeasuredPoint | None") -> str:
    """Return the text of README.md: front matter as the model hub reads it, and what the model is.

    Args:
        pair: the parents.
        fingerprints: the parents' fingerprints, by role.
        lam: the canonical point.
        like: the parent whose config, tokenizer and chat template the model has.
        run: what a run measured at this λ, if anything.
    """
    parents, line = pair.opened, pair.line
    theta = formula(line.method, coordinates(lam), bool(line.lam_map))
    lines = [
        "---",
        *_front_matter([parent.source for parent in parents.values() if parent.revision]),
        "---",
        "",
        f"# θ({lam}) of {', '.join(map(_name, list(parents.values())[:-1]))} and {_name(list(parents.values())[-1])}",
        "",
        f"The weights are {theta}, tensor by tensor, computed in float32 and rounded once.",
        *_beyond_the_formula(pair),
        "",
        "| parent | checkpoint | revision | fingerprint |",
        "|---|---|---|---|",
        *(
            f"| {role} | {_cell(_name(parent))} | {parent.revision or '–'} | `{fingerprints[role]}` |"
            for role, parent in parents.items()
        ),
        "",
        f"Config, tokenizer and chat template are those of {like}.",
        *_measured(lam, run),
        "",
        f"Made with lambdasweep {metadata.version('lambdasweep')}.",
        "",
    ]
    return "\n".join(lines)


def _beyond_the_formula(pair: "Pair") -> Iterator[str]:
    if pair.line.lam_map:
        yield f"The weight w of a tensor is 1, or what `{pair.line.lam_map}` says of it."
    for name, ranges in pair.aligned_rows.items():
        rows = sum(stop - start for start, stop in ranges)
        yield f"{rows} rows of `{name}` are aligned's: their token ids stand for other strings in base, or are not in it."


def _front_matter(base_models: list[str]) -> Iterator[str]:
    """Yield YAML, whose strings may be written as JSON's. Only hub ids are given, because the hub looks for them."""
    if base_models:
        yield "base_model:"
        yield from (f"- {json.dumps(name)}" for name in base_models)
        yield "base_model_relation: merge"
    yield from ("library_name: transformers", "pipeline_tag: text-generation", "tags:", "- merge", "- lambdasweep")


def _measured(lam: str, run: "MeasuredPoint | None") -> Iterator[str]:
    if run is None:
        return
    from calibration.catalogue import card_names
    from calibration.lm_eval_rows import PREFIX
    from calibration.measured_rows import tool_of

    names = card_names()
    rows = [
        row
        for row in run.metrics
        if row["value"] is not None
        and (
            tool_of(row["metric"]) or (row["metric"] in names and (row["confidence"], row["split"]) == ("sum", _SPLIT))
        )
    ]
    yield ""
    if not rows:
        yield f"λ = {lam} was not measured."
        return
    if run.answer:
        yield run.answer
        yield ""
    if run.beside:
        yield "λ*, both parents, and what can be had of them without merging (95 % intervals):"
        yield ""
        yield from run.beside
        yield ""
    if run.answer:
        yield (
            "λ* was chosen on the same documents, which flatters it a little; the intervals of its gains in accuracy "
            "and NLL are wider by that. The only numbers of held-out documents on this card are those that the answer above "
            "gives of a λ that was chosen on the other half."
        )
        yield ""
    yield f"λ = {lam} ({run.chosen_by}) was measured live in vLLM {run.record.versions.get('vllm', '')}, on all documents:"
    yield ""
    yield "| task | metric | value | 95 % interval | documents |"
    yield "|---|---|---|---|---|"
    for row in rows:
        name = names.get(row["metric"], row["metric"].removeprefix(PREFIX))
        has_interval = row["ci_low"] is not None and row["ci_high"] is not None
        interval = f"{row['ci_low']:.4f} to {row['ci_high']:.4f}" if has_interval else "–"
        yield f"| {_cell(row['task'])} | {_cell(name)} | {row['value']:.4f} | {interval} | {row['n'] or '–'} |"


def _name(parent: "Checkpoint") -> str:
    return parent.source if parent.revision else parent.path.name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
