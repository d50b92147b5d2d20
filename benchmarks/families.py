"""This runs small random models of each family: θ(λ) live, a fresh engine on the export, and transformers in float32.

    python benchmarks/families.py [--only NAME,NAME | --tiny] [--results FILE.json] [--table FILE.md] [--work DIR]

A pair of each family is made with random weights, so nothing is downloaded. Its engine says by which route it moves, or why
it does not; logprobs of a few prompts at λ = 0, 0.35 and 1 are held against transformers, and against fresh engines on both
parents and on the exported θ(0.35), bit by bit. A family is right when live equals fresh and is as near to transformers as a
fresh engine is; it is refused when it says in a sentence that it cannot be switched, or when a fresh vLLM does not run it,
either; anything else is wrong. With --results, what is run now takes the place of what was run before, and the table is of
both. --tiny runs one family of each kind. The last line is JSON.
"""

import argparse
import functools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from family_shapes import DIFFERING, KINDS, NOT_RUN, WRAPPERS, make_pair
from family_shapes import FAMILIES as MODELS
from forked import forked, import_model, import_vllm, keep_what_is_there

from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from merge.checkpoint import open_checkpoint
from merge.text_part import architecture_of
from serve.runnable import default_dtype, refuse_model
from serve.settings import EngineSettings, available_cores, installed_device

FAMILIES = MODELS | WRAPPERS
LAMBDAS = ("0", "0.35", "1")
_TO_TRANSFORMERS = 1e-4  # nats; where a fresh engine is farther away, the live one may be as far


def settings(architecture: str = "") -> EngineSettings:
    """Return the settings of the engines; a few architectures are not computed in float32 on a CPU."""
    device = installed_device()
    return EngineSettings(
        device=device,
        dtype=default_dtype(device, architecture, "bfloat16"),
        max_model_len=128,
        threads=1 if device == "cpu" else 0,
        block_size=32 if device == "cpu" else None,
        kv_cache_bytes=64 << 20,
        extra={} if device == "cpu" else {"enforce_eager": True},
    )


def prompts() -> list[list[int]]:
    """Return prompts of lengths on both sides of a cache block's."""
    return [[3 + (17 * place + 29 * length) % 500 for place in range(length)] for length in (9, 32, 33, 70)]


def live(work: Path) -> dict[str, Any]:
    """Return the route, and logprobs at each λ."""
    from serve import reference

    # A fork behaves like a process of its own, which would import vLLM anew.
    reference._ask = lambda arguments, checkpoint, environment: tuple(
        forked(work / "reference.log", lambda: reference.probe(arguments | {"model": str(checkpoint)}))
    )
    wall, processor = time.perf_counter(), _processor_seconds()
    engine = _engine(work / "base", work / "aligned")
    found: dict[str, Any] = {"route": engine.route, "why": engine.fallback}
    found["start_s"] = round(time.perf_counter() - wall, 2)
    found["start_processor_s"] = round(_processor_seconds() - processor, 2)
    for lam in LAMBDAS:
        engine.switch(lam)
        found[lam] = _logprobs(engine)
    return found


def fresh(checkpoint: Path) -> list[float]:
    """Return logprobs of a fresh engine on a checkpoint."""
    return _logprobs(_engine(checkpoint, None))


def _engine(base: Path, aligned: Path | None) -> Any:
    from serve.engine import Engine

    return Engine(base, aligned, settings(architecture_of(open_checkpoint(str(base), "base"))))


def _processor_seconds() -> float:
    own, children = os.times(), os.times()
    return own.user + own.system + children.children_user + children.children_system


def _logprobs(engine: Any) -> list[float]:
    from serve.engine import Prompt

    engine.clear_prefix_cache()
    answers = engine.score([Prompt(ids, 0, [0]) for ids in prompts()])
    order = sorted(range(len(answers.row)), key=lambda entry: (answers.prompt[entry], answers.row[entry]))
    return [float(answers.logprob[entry]) for entry in order]


def transformers_logprobs(checkpoint: Path) -> list[float]:
    """Return the same logprobs by transformers, in float32 on the CPU."""
    import torch
    import transformers

    (architecture,) = json.loads((checkpoint / "config.json").read_text())["architectures"]
    # Of a wrapper the whole.
    kind = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    model = kind.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    found: list[float] = []
    for ids in prompts():
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found += [float(scores[row, token]) for row, token in enumerate([*ids[1:], 0])]
    return found


def judge(family: str, work: Path, lambdas: tuple[str, ...]) -> dict[str, Any]:
    """Return one row of the table; fresh engines are started at some λs only."""
    row: dict[str, Any] = {"family": family, "run": date.today().isoformat()}
    forked(work / "make.log", lambda: make_pair(family, work))
    architecture = architecture_of(open_checkpoint(str(work / "base"), "base"))
    for one in (architecture, *json.loads((work / "base" / "config.json").read_text())["architectures"]):
        import_model(one)
    keep_what_is_there()
    if refused := refuse_model(installed_device(), architecture, settings(architecture).dtype):
        try:
            forked(work / "fresh-0.log", lambda: fresh(work / "base"))
        except RuntimeError:
            return row | {"verdict": "refused", "why": f"`plan`: {refused}"}
        return row | {"verdict": "wrong", "why": f"vLLM runs it, and a plan would say: {refused}"}
    try:
        found = forked(work / "live.log", lambda: live(work))
    except RuntimeError as error:
        if _is_refused(str(error), work):
            return row | {"why": NOT_RUN.get(family, str(error)[:400]), "verdict": "refused"}
        return row | {"why": str(error)[:400], "verdict": "wrong"}
    export = forked(work / "export.log", lambda: str(_export(work)))
    checkpoints = dict(zip(LAMBDAS, (work / "base", Path(export), work / "aligned"), strict=True))
    exact, loaded = {}, {}
    for lam, checkpoint in checkpoints.items():
        exact[lam] = forked(work / f"transformers-{lam}.log", functools.partial(transformers_logprobs, checkpoint))
        if lam in lambdas:
            loaded[lam] = forked(work / f"fresh-{lam}.log", functools.partial(fresh, checkpoint))
    to_fresh, own = (max(_gap(loaded[lam], two[lam]) for lam in lambdas) for two in (found, exact))
    to_exact = max(_gap(found[lam], exact[lam]) for lam in LAMBDAS)
    # Where a fresh engine itself is farther from transformers, the live one is exactly as far.
    is_right = to_fresh == 0 and to_exact <= max(_TO_TRANSFORMERS, own)
    return row | {
        "verdict": "right" if is_right else "wrong",
        "route": found["route"],
        "why": found["why"],
        "to_fresh": to_fresh,
        "to_transformers": to_exact,
        "fresh_to_transformers": own,
        "tells_apart": min(_gap(exact[LAMBDAS[1]], exact[lam]) for lam in ("0", "1")),
        "start_s": found["start_s"],
        "start_processor_s": found["start_processor_s"],
    }


def _export(work: Path) -> Path:
    source = from_flags(None, str(work / "base"), str(work / "aligned"), None, None, LAMBDAS[1])
    export_point(source, work / "export", "base", "5GB", print)
    return work / "export"


def _is_refused(message: str, work: Path) -> bool:
    """Tell whether a family is refused: an engine said so in a sentence, or a fresh vLLM does not run it, either."""
    if message.startswith(("WrongWeightsError", "InputError", "PairError")):
        return True
    try:
        forked(work / "fresh-0.log", lambda: fresh(work / "base"))
    except RuntimeError:
        return True
    return False


def _gap(one: list[float], two: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    head = "family", "verdict", "route", "to a fresh engine", "to transformers (nats)", "last run", "why"
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        why = row.get("why", "")
        if row.get("fresh_to_transformers", 0) > _TO_TRANSFORMERS:
            because = DIFFERING.get(row["family"], "why is not known")
            told = f"A fresh vLLM differs from transformers by {row['fresh_to_transformers']:.1e} nats: {because}."
            why = f"{told} {why}".strip()
        gaps = [f"{row[key]:.1e}" if row.get(key) else str(row.get(key, "")) for key in ("to_fresh", "to_transformers")]
        cells = row["family"], row["verdict"], row.get("route", ""), *gaps, row["run"], why.replace("|", "\\|")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="one family of each kind")
    parser.add_argument("--results", type=Path, help="JSON of all families' last runs; what is run now is put in")
    parser.add_argument("--table", type=Path, help="a document, in Markdown, whose table is replaced")
    parser.add_argument("--work", type=Path, help="where pairs and logs are kept")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(KINDS if arguments.tiny else FAMILIES)
    if unknown := set(names) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    from serve.start import process_environment

    os.environ.update(process_environment(settings(), available_cores()[:1]))
    import_vllm()
    root = arguments.work or Path(tempfile.mkdtemp(prefix="lambdasweep-families-"))
    results: dict[str, dict[str, Any]] = {}
    if arguments.results and arguments.results.exists():
        results = {row["family"]: row for row in json.loads(arguments.results.read_text())}
    for family in names:
        work = root / family
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            results[family] = judge(family, work, LAMBDAS[1:2] if arguments.tiny else LAMBDAS)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:400]
            results[family] = {"family": family, "run": date.today().isoformat(), "verdict": "wrong", "why": reason}
        print(results[family], flush=True)
        if arguments.results:
            arguments.results.write_text(json.dumps([results[name] for name in FAMILIES if name in results], indent=1))
    rows = [results[name] for name in FAMILIES if name in results]
    print(table(rows))
    if arguments.table:
        write_table(arguments.table, table(rows))
    counts = Counter(row["verdict"] for row in rows)
    worst = max((row["to_transformers"] for row in rows if "to_transformers" in row), default=0.0)
    summary = {"families": len(rows), **{verdict: counts[verdict] for verdict in ("right", "refused", "wrong")}}
    print(json.dumps(summary | {"worst_diff": worst}))


def write_table(document: Path, text: str) -> None:
    """Put a table in the place of a document's first one."""
    lines = document.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.startswith("|")]
    first = places[0]
    last = next(number for number in range(first, len(lines) + 1) if number not in places)
    document.write_text("".join(lines[:first]) + text + "".join(lines[last:]))


if __name__ == "__main__":
    main()
