"""This module makes one checked `ScoreConfig` of the flags of `lambdasweep score`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError
from contract.location import Location, locate
from contract.points import ONLY, parse_points
from lambdasweep.config import ENGINE_FIELDS, SweepConfig, argument_problems, engine_problems, read_parents
from lambdasweep.settings import as_flag


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """One batch as asked for."""

    sweep: SweepConfig
    """Model, engines and output; without tasks, and with one λ. Both parents are the model where there is one."""
    requests: tuple[str, ...]
    """Parquet files, globs or directories."""
    id: str
    """The id column."""
    is_model: bool
    """One checkpoint is scored, not a point between two."""


def load_score_config(flags: dict[str, Any], requests: list[str], engine: list[str]) -> ScoreConfig:
    """Check every flag that can be checked without opening anything.

    Args:
        flags: by name with underscores; None where a flag was not given.
        requests: of each `--requests`.
        engine: `KEY=VALUE` of each `--engine`.

    Raises:
        InputError: with every problem.
    """
    from serve.settings import parse_extra

    values = {name: value for name, value in flags.items() if value is not None}
    problems: list[str] = []
    settings = parse_extra(engine, problems)
    is_model = "model" in values
    of_pair = ("base", "aligned", "lam")
    lambdas: tuple[str, ...] = ("0",)
    if is_model:
        pair_flags = (
            *of_pair,
            "base_revision",
            "aligned_revision",
            "method",
            "lam_map",
            "vocab",
            "tokenizer",
            "parents",
        )
        if given := [as_flag(name) for name in pair_flags if name in values]:
            one = len(given) == 1
            problems.append(
                f"{', '.join(given)} {'is' if one else 'are'} of a pair: leave out --model, or {'it' if one else 'them'}"
            )
    elif not any(name in values for name in of_pair):
        problems.append("--model is missing: give a checkpoint, or a point of a pair as --base, --aligned and --lam")
    elif missing := [as_flag(name) for name in of_pair if name not in values]:
        are = "is" if len(missing) == 1 else "are"
        problems.append(f"{', '.join(missing)} {are} missing: a point of a pair takes --base, --aligned and --lam")
    if "lam" in values:
        try:
            lambdas = parse_points(values["lam"], read_parents(values) if values.get("aligned") else (ONLY,))
            if len(lambdas) != 1:
                problems.append(f"--lam {values['lam']} is {len(lambdas)} points: give one")
        except InputError as error:
            problems += [f"{error.title}: {problem}" for problem in error.problems] or [error.title]
    problems += [
        f"{flag} is missing" for flag, given in (("--requests", requests), ("--out", "out" in values)) if not given
    ]
    out: Location = Path()
    if "out" in values:
        try:
            out = locate(values["out"])
        except InputError as error:
            problems.append(error.title)
    problems += engine_problems(values, settings) + argument_problems(settings)
    if problems:
        raise InputError("the batch cannot be set up", problems)
    model = values.get("model", "")
    sweep = SweepConfig(
        base=values.get("base", model),
        aligned=values.get("aligned", model),
        lambdas=lambdas,
        tasks=(),
        out=out,
        engine=settings,
        **{name: values[name] for name in ENGINE_FIELDS if name in values},
    )
    return ScoreConfig(sweep, tuple(requests), values.get("id", "id"), is_model)
