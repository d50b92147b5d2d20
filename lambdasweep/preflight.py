"""This module asks the machine, vLLM and the requests whether a command can run, before anything is written.

`plan`, `run` and `score` share it, so that what `plan` says yes to runs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract.errors import InputError
from contract.points import role
from contract.schemas import of_documents
from lambdasweep.config import CHECKED_ARGUMENTS
from lambdasweep.memory import expected_memory
from lambdasweep.monitor.wording import counted, size

if TYPE_CHECKING:
    from lambdasweep.prepare import Prepared, PreparedPrompts, PreparedTask

_TOO_LONG = "too long"


def preflight(prepared: "Prepared") -> list[str]:
    """Check what can be known before anything is written or started; return what the user should know.

    Raises:
        InputError: with everything because of which no engine could start, or no request of a task be scored.
    """
    from ray_jobs.reach import check_address
    from serve.vllm_arguments import argument_problems

    config, settings, pair = prepared.config, prepared.settings, prepared.pair
    problems = [*_device_problems(prepared)]
    warnings: list[str] = []
    if config.address is not None:
        try:
            check_address(config.address)
        except InputError as error:
            problems.append(error.title)
    for name, task in prepared.everything.items():
        refused = refusals(prepared, task)
        if not refused:
            continue
        count, rows = sum(refused.values()), _of_documents(task).num_rows
        text = f"task {name}: {count} of {rows} requests cannot be scored: {_reasons(refused)}"
        if count == rows:
            problems.append(f"{text}: {_remedy(prepared, task)}")
        else:
            warnings.append(f"{text}; they will be quarantined")
    # vLLM is heavy, and says less clearly what is said above.
    if not problems and config.engine.keys() - CHECKED_ARGUMENTS:
        aligned = {name: pair.opened[role(name)].path for name in pair.aligned_by_name}
        problems += argument_problems(pair.base.path, aligned, settings, config.parents, pair.line)
    if problems:
        raise InputError("this cannot run", problems)
    return warnings


def _of_documents(task: "PreparedTask | PreparedPrompts") -> pa.Table:
    """Return the requests of a task's documents. Others are short, and tell nothing of documents that cannot be scored."""
    table = task.built.table
    return of_documents(table) if "choice" in table.column_names else table


def refusals(prepared: "Prepared", task: "PreparedTask | PreparedPrompts") -> dict[str, int]:
    """Count the requests of a task that the engine will refuse, by the reason without its numbers."""
    from lambdasweep.prepare import PreparedPrompts
    from serve.refusals import refuse_prompt, refuse_request

    table, most = _of_documents(task), prepared.settings.max_model_len
    if not table.num_rows:
        return {}
    vocabulary = _of_text(prepared, "vocab_size") or np.iinfo(np.int64).max
    lengths = pc.list_value_length(table["token_ids"]).to_numpy()
    # A question about an answer stands behind it, so that both must fit.
    sampled = task.spec.max_tokens + task.built.question_tokens if isinstance(task, PreparedPrompts) else None
    starts = table["continuation_start"].to_numpy() if sampled is None else None
    suspect = lengths + (sampled or 0) > most
    suspect |= (lengths < 1) if starts is None else (starts >= lengths) | (starts < 1)
    suspect |= _largest(table["token_ids"], lengths) >= vocabulary
    found: dict[str, int] = {}
    longest = 0
    for row in np.flatnonzero(suspect).tolist():
        ids = table["token_ids"][row].as_py()
        if starts is None:
            reason = refuse_prompt(ids, sampled or 0, most, vocabulary)
        else:
            reason = refuse_request(ids, int(starts[row]), most, vocabulary)
        if reason is None:
            continue
        if "more than the" in reason:
            longest = max(longest, len(ids))
            reason = _TOO_LONG
        found[reason] = found.get(reason, 0) + 1
    if _TOO_LONG in found:
        parts = f": {longest} and {sampled} to be sampled" if sampled else ""
        found[f"longer than {most} tokens (up to {longest + (sampled or 0)}{parts})"] = found.pop(_TOO_LONG)
    return found


def _largest(lists: pa.ChunkedArray, lengths: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
    """Return the largest token id of each list, -1 of an empty one."""
    flat = pc.list_flatten(lists).to_numpy()
    largest = np.full(len(lengths), -1)
    filled = lengths > 0
    if len(flat):
        begins = np.cumsum(lengths) - lengths
        largest[filled] = np.maximum.reduceat(flat, begins[filled])
    return largest


def _reasons(refused: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in refused.items())


def _remedy(prepared: "Prepared", task: "PreparedTask | PreparedPrompts") -> str:
    from merge.model_sizes import sizes_of

    window, most = sizes_of(prepared.pair).window, prepared.settings.max_model_len
    larger = f", or a larger --max-model-len (the model takes {window})" if window and window > most else ""
    return (
        f"give fewer --shots or shorter texts{larger}"
        if hasattr(task.spec, "shots")
        else f"give shorter prompts{larger}"
    )


def _of_text(prepared: "Prepared", key: str) -> int | None:
    """Return a whole number of the config, or of the config of its text model."""
    config = prepared.pair.shaped.config
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get(key), int):
            return int(part[key])
    return None


def _device_problems(prepared: "Prepared") -> Iterator[str]:
    from merge.model_sizes import sizes_of
    from serve.machine import gpu_count
    from serve.settings import available_cores

    config, settings = prepared.config, prepared.settings
    sizes = sizes_of(prepared.pair)
    if not sizes.can_be_dealt_to(settings.tensor_parallel):
        of_them = f"{counted(sizes.heads or 0, 'attention head')}, {sizes.kv_heads} of keys and values,"
        yield f"--tp {settings.tensor_parallel}: the model's {of_them} cannot be dealt to so many ranks"
    if settings.device == "cpu" and config.accelerator_type is not None:
        yield f"--accelerator-type {config.accelerator_type}: vLLM for the CPU is installed, and uses no GPU: leave it out"
    if config.address is not None:
        return  # what other machines have is known when they are asked
    if settings.device == "cpu":
        cores, each = len(available_cores()), settings.ranks * settings.threads
        if config.replicas is None and each > cores:
            yield (
                f"a replica takes {each} cores ({counted(settings.ranks, 'rank')} of "
                f"{counted(settings.threads, 'thread')}), and this machine has "
                f"{cores}: give fewer ranks, or --replicas 1, whose ranks then share the cores"
            )
    elif (gpus := gpu_count()) is not None and settings.ranks > gpus:
        yield f"a replica takes {settings.ranks} GPUs, and this machine has {gpus}: give fewer ranks, or a cluster"
    if settings.device != "cpu":
        return  # to measure a GPU takes memory of it, which a driver must not hold
    try:
        memory = expected_memory(prepared)
    except InputError as error:
        yield error.title
        return
    if memory and memory.host > memory.room.host_total:
        yield (
            f"--replicas {memory.replicas} take about {size(memory.host)} of memory, and this machine has "
            f"{size(memory.room.host_total)}: give fewer"
        )
