"""A LoRA adapter as PEFT writes it stands for the checkpoint that it makes of base:

    aligned = base + s · B · A,   s = α / r, or α / √r where the adapter is rank-stabilised

for each weight that has factors B (outputs × rank) and A (rank × inputs); weights of embeddings, and of layers that keep
theirs transposed, get the transposed product (E. J. Hu et al., "LoRA", ICLR 2022; D. Kalajdzievski, arXiv 2312.03732). Whole
modules that were trained are in the adapter as they are. Everything else is base's.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge.checkpoint import Checkpoint, LowRank, TensorInfo, natural_key
from merge.heads import embedding_of, has_own_head

_SHOWN = 4
_MERGE = "merge it with peft's merge_and_unload(), and give the merged checkpoint"
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(?:\.weight)?")
# These keys mean another formula, if they are set to something else than these values.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "alora_invocation_tokens": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "megatron_config": (None,),
}
# Of these ways to start training, the adapter's factors alone are left; others change base's weights, too.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(slots=True)
class _Factors:
    found: dict[str, TensorInfo] = field(default_factory=dict)  # the keys are A and B
    is_embedding: bool = False


def apply_adapter(
    adapter: Checkpoint, base: Checkpoint, called: str, problems: list[str], warnings: list[str]
) -> Checkpoint:
    """Return the checkpoint that an adapter makes of base; its adapted tensors are computed when they are read.

    Args:
        adapter: an opened adapter.
        base: the checkpoint that it is for.
        called: the adapter's role, for messages.
        problems: gets a line for everything that cannot be done.
        warnings: gets a line if the adapter was made for another checkpoint, by its name.
    """
    config = adapter.config
    wrong = _unsupported(config)
    if odd := sorted({info.dtype for info in adapter.tensors.values()} - {"F16", "BF16", "F32"}):
        wrong.append(f"it has tensors of {', '.join(odd)}: save it in F32, BF16 or F16")
    factors, saved = _sorted(adapter.tensors, wrong)
    tensors = dict(base.tensors)
    strange = []
    for name, info in saved.items():
        target = _target(name, base.tensors)
        if target is None and name.endswith("lm_head.weight"):
            target = name  # a base that ties its head has no tensor of this name
        if target is None:
            strange.append(name)
        else:
            tensors[target] = info
    for module, pair in factors.items():
        target = _target(f"{module}.weight", tensors)
        if target is None:
            strange.append(module)
        elif {*pair.found} == {"A", "B"}:
            update = _update(module, pair, config, tensors[target], wrong)
            tensors[target] = replace(tensors[target], update=update)
        else:
            wrong.append(f"{module} has one of two factors")
    if strange:
        shown = sorted(strange, key=natural_key)
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        wrong.append(f"base has no weights named {', '.join(shown[:_SHOWN])}{more}: give the base that it was made for")
    embedding = embedding_of(base)
    if embedding and not has_own_head(base) and tensors[embedding] != base.tensors[embedding]:
        wrong.append(
            f"it changes {embedding}, to which base ties its LM head: peft makes one model of that unmerged and another one "
            f"merged; {_MERGE}"
        )
    if not wrong and not factors and not saved:
        wrong.append("it has no factors")
    problems += [f"the adapter {adapter.source} cannot be used: {one}" for one in wrong]
    _hold_against_base(config, base, called, warnings)
    path = adapter.path if (adapter.path / "tokenizer.json").is_file() else base.path
    ordered = {name: tensors[name] for name in sorted(tensors, key=natural_key)}
    return replace(adapter, path=path, config=base.config, tensors=ordered, is_adapter=False)


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        return [f"it is of the kind {kind or 'unknown'}, and only LoRA is taken: {_MERGE}"]
    found = [
        f"{key} is {config[key]!r} in adapter_config.json, which makes weights by another formula than base + s · B · A: "
        f"{_MERGE}"
        for key, plain in _PLAIN.items()
        if key in config and config[key] not in plain
    ]
    if config.get("init_lora_weights") not in _STARTS:
        found.append(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes base's weights, too: convert it to a "
            "plain LoRA adapter (path_initial_model_for_weight_conversion), or merge it with peft's merge_and_unload()"
        )
    return found


def _sorted(tensors: Mapping[str, TensorInfo], wrong: list[str]) -> tuple[dict[str, _Factors], dict[str, TensorInfo]]:
    """Return the factors of each module, and the whole tensors by name, as base names them."""
    factors: dict[str, _Factors] = {}
    saved: dict[str, TensorInfo] = {}
    for stored, info in tensors.items():
        name = re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", stored.removeprefix("base_model.model."))
        if match := _FACTOR.fullmatch(name):
            pair = factors.setdefault(match[1], _Factors(is_embedding=bool(match[2])))
            pair.found[match[3]] = info
        elif ".lora_" in name:
            wrong.append(f"it has {stored}, which is no factor of a plain LoRA")
        else:
            saved[name] = info
    return factors, saved


def _target(name: str, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return base's name of a tensor that the adapter's model calls `name`: models may have a prefix more or less."""
    parts = name.split(".")
    for first in range(len(parts) - 2):
        if (shorter := ".".join(parts[first:])) in tensors:
            return shorter
    if name in tensors:
        return name
    longer = [one for one in tensors if one.endswith(f".{name}")]
    return longer[0] if len(longer) == 1 else None


def _update(
    module: str, pair: _Factors, config: Mapping[str, Any], info: TensorInfo, wrong: list[str]
) -> LowRank | None:
    up, down = pair.found["B"], pair.found["A"]
    is_transposed = pair.is_embedding or bool(config.get("fan_in_fan_out"))
    shapes = up.shape, down.shape
    if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
        wrong.append(f"the factors of {module} have the shapes {list(shapes[1])} and {list(shapes[0])}")
        return None
    made = (up.shape[0], down.shape[1])
    if (made[::-1] if is_transposed else made) != info.shape:
        wrong.append(f"the factors of {module} make a tensor of shape {list(made)}, and base's is {list(info.shape)}")
        return None
    rank = up.shape[1]
    expected = _of_module(config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if rank != expected or not isinstance(alpha, int | float):
        wrong.append(f"{module} has rank {rank}, and adapter_config.json says {expected!r} and lora_alpha {alpha!r}")
        return None
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(up, down, scale, is_transposed)


def _of_module(patterns: Any, module: str, otherwise: Any) -> Any:
    """Return what the first pattern that matches a module's name says, as PEFT reads rank_pattern and alpha_pattern."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _hold_against_base(config: Mapping[str, Any], base: Checkpoint, called: str, warnings: list[str]) -> None:
    made_for = str(config.get("base_model_name_or_path") or "")
    if not made_for:
        warnings.append(f"{called} does not say which checkpoint it is an adapter of: it was not compared with base")
    elif Path(made_for.rstrip("/")).name.lower() != Path(base.source.rstrip("/")).name.lower() and (
        not Path(made_for).is_dir() or Path(made_for).resolve() != base.path
    ):
        warnings.append(
            f"{called} is an adapter of {made_for}, and base is {base.source}: that they are the same is not known"
        )
