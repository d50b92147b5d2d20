"""This module settles what engines are started with where the user left it open."""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contract.errors import InputError, join
from lambdasweep.config import SweepConfig
from lambdasweep.engine_sizes import bytes_of_number, live_bytes, needs_of
from lambdasweep.fewest_ranks import with_fewest_ranks

if TYPE_CHECKING:
    from merge.model_sizes import ModelSizes
    from merge.pair import Pair
    from serve.machine import Gpus
    from serve.settings import EngineSettings

CPU_WINDOW = 8192
_LEAST_LENGTH = 1024  # tokens: room for tasks that are added to a run later
GIB = 1 << 30
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def settle(
    config: SweepConfig, pair: "Pair", device: str, recorded: Mapping[str, Any] | None, samples: bool = False
) -> "EngineSettings":
    """Choose what the user left open. Deterministic in (config, pair, machine), or taken from `recorded`.

    `samples` tells whether anything is sampled.

    The engines then take as long requests as the model does, on a CPU of `CPU_WINDOW` tokens at most: `fit` shortens that.
    They have one rank a stage where nothing else was asked for: `fit` gives a large model more.

    Raises:
        InputError: a setting does not fit the model, or text cannot be scored with it.
    """
    from merge.model_sizes import sizes_of
    from merge.text_part import architecture_of
    from serve.runnable import default_dtype, refuse_groups, refuse_model
    from serve.settings import EngineSettings, available_cores, threads_of_rank

    recorded, sizes = recorded or {}, sizes_of(pair)
    dtype, architecture = config.dtype, architecture_of(pair.shaped)
    if dtype == "auto":
        dtype = default_dtype(device, architecture, _dtype_of(pair))
    if refused := refuse_model(device, architecture, dtype) or refuse_groups(architecture, pair.shaped.config):
        raise InputError(refused)
    window = sizes.window or CPU_WINDOW
    max_model_len = config.max_model_len or (min(window, CPU_WINDOW) if device == "cpu" else window)
    failures = []
    if max_model_len > window:
        failures.append(f"--max-model-len {max_model_len} is more than the {window} positions of the model")
    if sizes.layers is not None and config.pp > sizes.layers:
        failures.append(f"--pp {config.pp} is more than the {sizes.layers} layers of the model: each stage needs one")
    if failures:
        raise join([InputError(failure) for failure in failures])
    head_dtype = config.engine.get("head_dtype", "float32")
    extra = {key: value for key, value in config.engine.items() if key != "head_dtype"}
    if device == "cuda":
        # Steps of thousands of tokens gain nothing from CUDA graphs, and an engine starts minutes sooner without.
        extra.setdefault("enforce_eager", recorded.get("extra", {}).get("enforce_eager", not samples))
    tp = config.tp or int(recorded.get("tensor_parallel", 1))
    ranks = tp * config.pp
    threads, kv_cache_bytes = 0, extra.pop("kv_cache_memory_bytes", None)
    if device == "cpu":
        cores = len(available_cores())
        replicas = config.replicas or default_replicas(cores, ranks)
        threads = extra.pop("threads", None) or recorded.get("threads") or threads_of_rank(cores, replicas * ranks)
        kv_cache_bytes = kv_cache_bytes or _kv_cache_bytes(max_model_len, sizes, dtype, ranks)
    return EngineSettings(
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        tensor_parallel=tp,
        pipeline_parallel=config.pp,
        threads=threads,
        head_dtype=head_dtype,
        block_size=extra.pop("block_size", 32 if device == "cpu" else None),
        kv_cache_bytes=kv_cache_bytes,
        max_num_batched_tokens=extra.pop("max_num_batched_tokens", 2048 if device == "cpu" else 8192),
        max_num_seqs=extra.pop("max_num_seqs", 256 if device == "cpu" else 1024),
        batch_invariant=device == "cuda" and os.environ.get("VLLM_BATCH_INVARIANT") == "1",
        extra=extra,
    )


def fit(
    settings: "EngineSettings",
    config: SweepConfig,
    pair: "Pair",
    recorded: Mapping[str, Any] | None,
    longest: int,
    samples: bool = False,
    gpus: "Gpus | None" = None,
) -> "EngineSettings":
    """Have engines take requests as long as the longest one, rounded up to a power of two; `--max-model-len` wins.

    On GPUs they then have as few ranks as hold the model; `--tp` wins.

    How large the KV cache is follows from both. On a GPU it is settled only where nothing is sampled (samples are faster the
    more of them run at a time, so that they get all that is free), and where it surely fits: vLLM takes a size that it is
    given without a look at what is free. GPUs of other machines may be smaller.

    A window much larger than what it is used for would take memory of keys and values, and could change what the rotary
    embedding does to short prompts (`ModelSizes.short_window`).

    Args:
        settings: as `settle` returned them.
        config: what was asked for.
        pair: the parents.
        recorded: `engine` of the run's sweep.json. What a run began with is kept where it is long enough.
        longest: tokens of the longest request; 0 where none is known: engines then take what `settle` says.
        samples: whether anything is sampled.
        gpus: the GPUs of this machine; None where there are none, or they are not known.
    """
    from merge.model_sizes import sizes_of

    sizes = sizes_of(pair)
    length = settings.max_model_len
    if config.max_model_len is None and longest:
        length = _length(settings, sizes, recorded, longest)
    settings, cache = dataclasses.replace(settings, max_model_len=length), settings.kv_cache_bytes
    if settings.device == "cuda" and config.tp is None and not recorded and gpus is not None:
        settings = with_fewest_ranks(settings, pair, gpus)
    if "kv_cache_memory_bytes" not in config.engine:
        if recorded and recorded.get("max_model_len") == length and "kv_cache_bytes" in recorded:
            cache = recorded["kv_cache_bytes"]
        elif settings.device == "cpu":
            cache = _kv_cache_bytes(length, sizes, settings.dtype, settings.ranks)
        elif longest and not samples and gpus is not None and config.address is None:
            cache = _scoring_cache(settings, pair, gpus.memory)
    return dataclasses.replace(settings, kv_cache_bytes=cache)


def _scoring_cache(settings: "EngineSettings", pair: "Pair", device_total: int) -> int | None:
    """Return the KV cache with which scoring never waits; None where it may not fit a GPU, or is not known."""
    from merge.model_sizes import sizes_of
    from merge.text_part import only_text
    from serve.switch.tiers import Room

    need = needs_of(settings, sizes_of(pair))
    # The factors of adapters count with --parents reload, too, which brings none: what is recorded must not depend on it.
    _, factors = only_text(pair).held_bytes(settings.ranks)
    room = Room(
        0,
        0,
        settings.ranks,
        device_total,
        device_total - live_bytes(pair, settings.dtype) // settings.ranks,
        settings.gpu_share,
        need.scoring,
        step_bytes=need.step,
        factor_bytes=factors,
    )
    return need.scoring if need.scoring and room.device_reserve <= room.device_free else None


def _dtype_of(pair: "Pair") -> str:
    """Return what an engine on a GPU computes in where nothing else was asked for: the checkpoint's dtype, if it has one."""
    from merge.text_part import only_text

    kinds = {_DTYPES[info.dtype] for info in only_text(pair).base.tensors.values()}
    return "float32" if len(kinds) > 1 else kinds.pop()


def _length(settings: "EngineSettings", sizes: "ModelSizes", recorded: Mapping[str, Any] | None, longest: int) -> int:
    needed = min(longest, settings.max_model_len)  # longer requests are quarantined
    length = max(_LEAST_LENGTH, 1 << (needed - 1).bit_length())
    if sizes.short_window is not None and needed <= sizes.short_window:
        length = min(length, sizes.short_window)
    if recorded and needed <= recorded["max_model_len"]:
        length = recorded["max_model_len"]
    return min(length, settings.max_model_len)


def how_long(settings: "EngineSettings", config: SweepConfig, recorded: Mapping[str, Any] | None, longest: int) -> str:
    """Say why engines take requests of `settings.max_model_len` tokens.

    Args:
        settings: as `fit` returned them, or `settle` where no request is known.
        config: what was asked for.
        recorded: `engine` of the run's sweep.json.
        longest: tokens of the longest request; 0 where none is known.
    """
    if config.max_model_len is not None:
        return "--max-model-len"
    if not longest:
        return "the requests are not known"
    why = f"the longest has {longest}"
    return f"{why}, and the run began with so many" if recorded else why


def cache_warnings(
    settings: "EngineSettings", config: SweepConfig, recorded: Mapping[str, Any] | None, samples: bool
) -> tuple[str, ...]:
    """Return a warning where samples are drawn on a GPU in a run whose KV cache was settled for scoring."""
    is_asked_for = "kv_cache_memory_bytes" in config.engine
    if settings.device == "cpu" or not (recorded and samples) or is_asked_for or settings.kv_cache_bytes is None:
        return ()
    return (
        f"the run began with scoring alone, for which a KV cache of {settings.kv_cache_bytes / 1e9:.1f} GB a rank is "
        "enough: what is sampled is sampled faster with all that is free, in a run of its own (another --out)",
    )


def rope_warnings(settings: "EngineSettings", pair: "Pair") -> tuple[str, ...]:
    """Return a warning where engines give short prompts other rotary factors than the model was trained with."""
    from merge.model_sizes import sizes_of

    short, longest = sizes_of(pair).short_window, settings.max_model_len
    if short is None or longest <= short:
        return ()
    return (
        f"engines take requests of up to {longest} tokens, and vLLM then gives every request the long rotary factors of "
        f"this model; transformers gives those of up to {short} tokens the short ones, and scores them otherwise. "
        f"--max-model-len {short} has the short factors, and quarantines longer requests",
    )


def model_warnings(settings: "EngineSettings", pair: "Pair") -> tuple[str, ...]:
    """Return a warning where vLLM itself is known to score a model otherwise than transformers."""
    from merge.text_part import architecture_of
    from serve.runnable import warn_of_model

    warning = warn_of_model(settings.device, architecture_of(pair.shaped))
    return (warning,) if warning else ()


def _kv_cache_bytes(max_model_len: int, sizes: "ModelSizes", dtype: str, ranks: int) -> int:
    """Return the KV cache of a rank on a CPU: two requests of the greatest length, or a GiB."""
    return max(GIB, 2 * max_model_len * kv_bytes_per_token(sizes, dtype) // ranks)


def default_replicas(cores: int, ranks: int) -> int:
    """Two replicas on a CPU that has cores for them: one scores while the other switches, and both share the parents."""
    return 2 if cores >= 2 * ranks else 1


def kv_bytes_per_token(sizes: "ModelSizes", dtype: str) -> int:
    """Bytes of keys and values per token over all layers; 0 where the config does not say."""
    return sizes.kv_values_per_token * bytes_of_number(dtype)


def server_defaults(pair: "Pair", device: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vLLM arguments that a server starts with where no flag says otherwise: a run's own, else a sweep's.

    A server takes as long contexts as the model does, whatever the requests of the run were; of a model with two kinds of
    rotary factors, as long as the short ones are meant for, as vLLM's own server does.

    Args:
        pair: the parents.
        device: cpu or cuda.
        recorded: `engine` of the run's sweep.json; empty where there is no run.
    """
    from merge.model_sizes import sizes_of
    from merge.text_part import architecture_of
    from serve.runnable import default_dtype, refuse_groups, refuse_model

    sizes, architecture = sizes_of(pair), architecture_of(pair.shaped)
    if refused := refuse_groups(architecture, pair.shaped.config):
        raise InputError(refused)
    window = sizes.window or CPU_WINDOW
    window = min(window, sizes.short_window or window)
    defaults: dict[str, Any] = {"max_model_len": window}
    if device == "cpu":
        dtype = default_dtype(device, architecture, "")
        if refused := refuse_model(device, architecture, dtype):
            raise InputError(refused)
        defaults |= {
            "max_model_len": min(window, CPU_WINDOW),
            "dtype": dtype,
            "block_size": 32,
            "enforce_eager": True,
        }
    defaults |= {key: recorded[key] for key in ("dtype",) if key in recorded}
    # What a sweep's engines were given of another config is a part of its numbers.
    defaults |= {
        key: value for key, value in recorded.get("extra", {}).items() if key in ("hf_overrides", "hf_config_path")
    }
    if recorded.get("tensor_parallel", 1) > 1:
        defaults["tensor_parallel_size"] = recorded["tensor_parallel"]
    if recorded.get("pipeline_parallel", 1) > 1 and device != "cpu":  # whose memory is one
        defaults["pipeline_parallel_size"] = recorded["pipeline_parallel"]
    if device == "cpu":
        context = defaults["max_model_len"] * kv_bytes_per_token(sizes, defaults["dtype"])
        defaults["kv_cache_memory_bytes"] = max(GIB, 4 * context)
    return defaults
