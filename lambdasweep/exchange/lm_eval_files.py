"""A run becomes the files that lm-eval 0.4.13 writes: results and samples, in a folder for each λ.

What reads lm-eval's output (its table maker, leaderboards, viewers of samples) reads these files. The keys are those of
lm-eval's `EvalResults` and `EvaluationTracker`. Nothing of lm-eval is needed to write them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from contract.commit import commit_bytes
from contract.formula import formula
from contract.location import read_table
from contract.points import coordinates
from contract.records import LineRecord, TaskRecord
from contract.rundir import RunDir
from contract.schemas import of_documents, point_of
from lambdasweep.exchange.lm_eval_samples import FILTER, TaskTexts, hashed, samples_at, standard_error
from lambdasweep.exchange.texts import texts_of, tokenizer_of
from lambdasweep.tasks.formats import AS_TURNS
from lambdasweep.tasks.lm_eval_tasks.spec import PREFIX, VERSION

if TYPE_CHECKING:
    from calibration.analyse import Analysis

_NOT_IN_NAMES = re.compile(r"[\"<>:/|\\?*\[\]]+")  # what lm-eval takes out of a model's name to make a folder of it
_TRANSIENT = ("lambdas", "shards", "costs")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of a task or group at one λ, by lm-eval's names, with the number of documents."""

    values: dict[str, float | str]
    documents: int
    original: int


def write_lm_eval(
    run: RunDir, analysis: "Analysis", folder: Path, when: datetime, say: Callable[[str], None]
) -> list[Path]:
    """Write lm-eval's files of every λ into `folder` and return the paths of the results.

    Each λ has the folder `<aligned>-lambda-<λ>`, with `results_<time>.json` and a `samples_<task>_<time>.jsonl` for each
    scored task. A λ that a task has not finished leaves that task out, and `say` is told; generate tasks have no samples
    that lm-eval knows of. A file has one system prompt and one chat template, those of the first task that has one; each
    task's own stand in `configs`.

    Args:
        run: the run.
        analysis: the run's analysis.
        folder: where to write; lm-eval writes a new set of files for each call, and so does this.
        when: the time that the files are named by.
        say: a function that is called with one line of news at a time.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
        OSError: the disk is full or not writable.
    """
    tokenizer = tokenizer_of(analysis.sweep, say)
    texts = {}
    for name, record in analysis.plan.items():
        if record.scored_as not in ("samples", "other", "answers"):
            requests = of_documents(read_table(run.requests(name)))
            texts[name] = TaskTexts(name, requests, texts_of(requests, tokenizer), _is_of_lm_eval(record))
    stamp, written = when.isoformat().replace(":", "-"), []
    numbers = _numbers(analysis)
    unfinished: dict[str, list[str]] = {}
    for lam, of_lam in numbers.items():
        samples = {}
        for name, task in texts.items():
            record = analysis.plan[name]
            if lam in record.lambdas and len(run.committed(name, lam)) == len(record.shards):
                samples[name] = samples_at(run, task, lam)
            elif of_lam.pop(name, None) is not None:
                unfinished.setdefault(name, []).append(lam)
        for pool, members in analysis.pools.items():
            if any(lam in unfinished.get(member, ()) for member in members):
                of_lam.pop(pool, None)
        if not of_lam:
            continue
        model = f"{_aligned(analysis)}-lambda-{lam}"
        into = folder / _NOT_IN_NAMES.sub("__", model)
        for name, rows in samples.items():
            lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            commit_bytes(into / f"samples_{name}_{stamp}.jsonl", lines.encode())
        results = _results(analysis, of_lam, samples, lam, model, when) | _tokenizer_info(tokenizer, analysis)
        path = into / f"results_{stamp}.json"
        commit_bytes(path, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False).encode())
        written.append(path)
    for name, lams in unfinished.items():
        say(f"task {name} is not finished at λ = {', '.join(lams)} and left out there")
    return written


def _numbers(analysis: "Analysis") -> dict[str, dict[str, _Numbers]]:
    """Return the numbers at each λ, by task or group."""
    from calibration.catalogue import COUNTED, find
    from calibration.lm_eval_rows import LEFT_OUT
    from calibration.lm_eval_rows import PREFIX as OUTCOME

    found: dict[str, dict[str, _Numbers]] = {}
    for row in analysis.metrics.to_pylist():
        name, metric = row["task"], row["metric"]
        if row["split"] != "all" or row["value"] is None or metric == LEFT_OUT or metric.startswith("docs_"):
            continue
        of_task = found.setdefault(point_of(row), {}).setdefault(name, _Numbers({}, 0, 0))
        value = row["value"] if math.isfinite(row["value"]) else "inf"
        if metric.startswith(OUTCOME):
            of_task.values[metric.removeprefix(OUTCOME)] = value  # lm-eval's own number stands where both have one
            continue
        if "_vs_" in metric:
            continue
        known = find(metric)
        suffix = "" if row["confidence"] == "sum" or (known and known.confidence) else f"_{row['confidence']}"
        of_task.values.setdefault(f"{metric}{suffix},{FILTER}", value)
        if metric in COUNTED.values():
            record = analysis.plan.get(name)  # pooled tasks and lm-eval's groups have none
            original = record.documents if record else None
            found[point_of(row)][name] = _Numbers(of_task.values, row["n"], original or row["n"])
    return found


def _results(
    analysis: "Analysis",
    numbers: Mapping[str, _Numbers],
    samples: Mapping[str, list[dict[str, Any]]],
    lam: str,
    model: str,
    when: datetime,
) -> dict[str, Any]:
    tasks = {name: _of_task(name, one, samples.get(name, [])) for name, one in numbers.items()}
    plan = {name: record for name, record in analysis.plan.items() if name in tasks}
    groups = {name: values for name, values in tasks.items() if name not in analysis.plan}
    system_prompt = next((one.system_prompt for one in plan.values() if one.system_prompt is not None), None)
    hashes = {
        name: hashed("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        for name, rows in samples.items()
        if rows
    }
    return {
        "results": tasks,
        **({"groups": groups} if groups else {}),
        "group_subtasks": {name: list(some) for name, some in analysis.pools.items() if name in groups},
        "configs": {name: _config(name, record) for name, record in plan.items()},
        "versions": dict.fromkeys(tasks, "N/A"),
        "n-shot": {name: record.shots or 0 for name, record in plan.items()},
        "higher_is_better": {name: dict(_directions(values)) for name, values in tasks.items()},
        "n-samples": {
            name: {"original": numbers[name].original, "effective": numbers[name].documents} for name in plan
        },
        "config": _model(analysis, lam, model),
        "git_hash": None,
        "date": when.timestamp(),
        "pretty_env_info": ", ".join(f"{name} {version}" for name, version in analysis.sweep.versions.items()),
        "transformers_version": analysis.sweep.versions.get("transformers", "N/A"),
        "lm_eval_version": VERSION,
        "upper_git_hash": None,
        "task_hashes": hashes,
        "model_source": "lambdasweep",
        "model_name": model,
        "model_name_sanitized": _NOT_IN_NAMES.sub("__", model),
        "system_instruction": system_prompt,
        "system_instruction_sha": hashed(system_prompt) if system_prompt else None,
        "fewshot_as_multiturn": any((one.template or "").endswith(AS_TURNS) for one in plan.values()),
        "chat_template": None,
        "chat_template_sha": next(
            (one.chat_template_sha256 for one in plan.values() if one.chat_template_sha256), None
        ),
        "total_evaluation_time_seconds": None,
    }


def _of_task(name: str, numbers: _Numbers, samples: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "alias": name, "sample_len": numbers.documents or len(samples)}
    for key, value in numbers.values.items():
        metric, _, filtered = key.partition(",")
        found[key] = value
        per_document = [sample[metric] for sample in samples if metric in sample["metrics"]]
        same = len(per_document) == numbers.documents and filtered == FILTER
        found[f"{metric}_stderr,{filtered}"] = standard_error(per_document) if same else "N/A"
    return found


def _directions(values: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    from calibration.catalogue import find

    for key in values:
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            known = find(metric) or find(metric.rpartition("_")[0])
            yield metric, {"up": True, "down": False}.get(known.direction) if known else None


def _config(name: str, record: TaskRecord) -> dict[str, Any]:
    kept = {key: value for key, value in record.to_json().items() if key not in _TRANSIENT}
    kinds = {"continuation": "loglikelihood", "answers": "generate_until"}
    kind = kinds.get(record.scored_as, "multiple_choice")
    return {"task": name, "output_type": kind, "num_fewshot": record.shots or 0, "metadata": kept}


def _model(analysis: "Analysis", lam: str, model: str) -> dict[str, Any]:
    sweep = analysis.sweep
    line = sweep.line or LineRecord()
    arguments: dict[str, Any] = {"pretrained": model, "lam": lam}
    arguments["formula"] = formula(line.method, coordinates(lam), bool(line.lam_map))
    for name, parent in sweep.pair.items():
        arguments |= {name: parent.source, f"{name}_revision": parent.revision, f"{name}_sha256": parent.fingerprint}
    limit = {record.limit for record in analysis.plan.values()}
    return {
        "model": "lambdasweep",
        "model_args": arguments,
        "model_dtype": str(sweep.engine.get("dtype")),
        "batch_size": None,
        "batch_sizes": [],
        "device": sweep.engine.get("device"),
        "use_cache": None,
        "limit": limit.pop() if len(limit) == 1 else None,
        "bootstrap_iters": 0,  # standard errors are in closed form or absent
        "gen_kwargs": None,
        "random_seed": None,
        "numpy_seed": None,
        "torch_seed": None,
        "fewshot_seed": next((record.seed for record in analysis.plan.values() if record.seed is not None), None),
    }


def _tokenizer_info(tokenizer: Any, analysis: "Analysis") -> dict[str, Any]:
    if tokenizer is None:
        return {}
    kinds = {f"tokenizer_{kind}_token": kind for kind in ("pad", "eos", "bos")}
    tokens = {
        key: [getattr(tokenizer, f"{kind}_token", None), str(getattr(tokenizer, f"{kind}_token_id", None))]
        for key, kind in kinds.items()
    }
    return tokens | {
        "eot_token_id": tokenizer.eos_token_id,
        "max_length": analysis.sweep.engine.get("max_model_len"),
    }


def _aligned(analysis: "Analysis") -> str:
    names = [PurePath(parent.source).name for role, parent in analysis.sweep.pair.items() if role != "base"]
    return "-".join(names)


def _is_of_lm_eval(record: TaskRecord) -> bool:
    return (record.file or "").startswith(PREFIX) or record.format == "lm-eval"
