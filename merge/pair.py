"""A pair holds checkpoints of one architecture, checked so that the line between them means something.

One is base and one is aligned; or several are aligned, each with a name, and θ is on the plane through base and all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from contract.errors import PairError
from contract.points import by_name, role
from merge.checkpoint import Checkpoint, natural_key, open_checkpoint
from merge.lam_map import parse_map, resolve_map
from merge.line import STRAIGHT, Line
from merge.vocabulary import Spans, aligned_rows, compare_vocabularies, has_vocabulary_rows

# The values of these keys may differ between two configs without a difference in what the weights mean. Post-training
# changes generation defaults and the window; everything else (sizes, activations, rotary base, norms) must agree.
_IRRELEVANT = {
    "_name_or_path", "_model_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "attention_dropout", "hidden_dropout",
    "initializer_range", "pretraining_tp", "auto_map", "use_flash_attn", "tokenizer_class", "gradient_checkpointing",
    "transformers.js_config", "unsloth_version", "unsloth_fixed", "_attn_implementation_autoset",
}  # fmt: skip
# Older versions of transformers leave these keys out; where they are absent they follow from other keys or from the tensors.
_DERIVED = {"head_dim", "num_key_value_heads", "layer_types", "tie_word_embeddings"}
_WINDOW = {"max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers"}
_FLOATS = {"F16", "BF16", "F32"}
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """The parents, which passed every check made so far, and the line between them.

    `warnings` names differences that do not stop a sweep.
    """

    base: Checkpoint
    aligned_by_name: Mapping[str, Checkpoint]  # sorted by name; the name of an only one is ""
    warnings: tuple[str, ...]
    line: Line = STRAIGHT
    weights: Mapping[str, str] = field(default_factory=dict)  # the factors on λ, for the tensors that the map names
    aligned_rows: Mapping[str, Spans] = field(default_factory=dict)
    """The rows that are aligned's at every λ, by the tensor's name; there are none with a strict vocabulary."""

    @property
    def aligned(self) -> Checkpoint:
        """Return the aligned checkpoint; of several, the first by name, whose tokenizer and template stand for all."""
        return next(iter(self.aligned_by_name.values()))

    @property
    def parents(self) -> dict[str, Checkpoint]:
        """Return all parents by role: `base`, then `aligned` or each `aligned.NAME`, as `merge.interpolate` orders them."""
        return {"base": self.base} | {role(name): one for name, one in self.aligned_by_name.items()}

    def parent(self, name: str) -> Checkpoint:
        """Return the parent that a user calls by this name: `base`, `aligned`, or the name of an aligned checkpoint."""
        return {"base": self.base, "aligned": self.aligned, **self.aligned_by_name}[name]

    @property
    def shaped(self) -> Checkpoint:
        """Return the parent whose config, shapes and tokenizer θ(λ) has."""
        return self.aligned if self.line.has_aligned_shapes else self.base

    @property
    def ends_at_aligned(self) -> bool:
        """Tell whether θ(1) is the aligned parent, which a map of weights on λ may prevent."""
        return all(self.weights.get(name, "1") == "1" for name in self.base.tensors)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors of all parents together."""
        return sum(parent.nbytes for parent in self.parents.values())


def open_pair(
    base: str,
    aligned: str | Mapping[str, str],
    base_revision: str | None = None,
    aligned_revision: str | Mapping[str, str | None] | None = None,
    line: Line = STRAIGHT,
) -> Pair:
    """Open all checkpoints and compare their configs, tensor names, shapes, dtypes and vocabularies with base's.

    This reads headers and tokenizers only; `merge.fingerprints.fingerprint` reads the weights.

    Args:
        base: the directory or hub id of base.
        aligned: the directory or hub id of the aligned checkpoint, or those of several by name.
        base_revision: the branch, tag or commit of base's hub id.
        aligned_revision: the branch, tag or commit of the aligned hub id, or those of several by name.
        line: the line between the parents.

    Raises:
        PairError: the checkpoints do not fit together, or a line between two was asked for over several; the error lists
            every mismatch of every checkpoint.
        InputError: the line's map does not fit the tensors.
    """
    problems: list[str] = []
    sources, revisions = by_name(aligned), by_name(aligned_revision)
    if len(sources) > 1:
        problems += line.two_parents_only()
    opened: dict[str, Checkpoint] = {}
    for name, source, revision in (
        ("base", base, base_revision),
        *((role(name), source, revisions.get(name)) for name, source in sources.items()),
    ):
        try:
            opened[name] = open_checkpoint(source, name, revision)
        except PairError as error:
            problems += [f"{error.title}: {problem}" for problem in error.problems] or [error.title]
    if problems:
        raise PairError("the pair cannot be opened", problems)
    one = opened["base"]
    others = {name: opened[role(name)] for name in sources}
    warnings: list[str] = []
    is_shared = line.vocab == "shared"
    for name, two in others.items():
        wrong: list[str] = []
        told: list[str] = []
        _compare_configs(one, two, wrong, told, is_shared)
        _compare_tensors(one, two, wrong, is_shared)
        compare_vocabularies(one.path, two.path, wrong, told, is_shared)
        whose = f"{role(name)}: " if name else ""
        problems += [f"{whose}{problem}" for problem in wrong]
        warnings += [f"{whose}{warning}" for warning in told]
    if problems:
        raise PairError("base and aligned do not fit together", problems)
    pair = join(one, others, line)
    for name, spans in pair.aligned_rows.items():
        rows = sum(stop - start for start, stop in spans)
        warnings.append(
            f"{rows} of {pair.aligned.tensors[name].shape[0]} rows of {name} are aligned's at every λ: their token ids "
            "stand for other strings in base, or are not in it"
        )
    return replace(pair, warnings=tuple(warnings))


def join(base: Checkpoint, aligned: Mapping[str, Checkpoint], line: Line) -> Pair:
    """Make a pair from the headers and tokenizers of checkpoints that fit together, which `open_pair` checks.

    Raises:
        InputError: the line's map does not fit the tensors.
    """
    pair = Pair(base, dict(sorted(aligned.items())), (), line)
    weights = resolve_map(parse_map(line.lam_map), pair.aligned.tensors)
    rows = aligned_rows(base, pair.aligned) if line.vocab == "shared" else {}
    return replace(pair, weights=weights, aligned_rows=rows)


def _compare_configs(
    base: Checkpoint, aligned: Checkpoint, problems: list[str], warnings: list[str], is_shared: bool
) -> None:
    config_one, config_two = meaning(base.config), meaning(aligned.config)
    if is_shared:
        config_one["vocab_size"] = config_two.get("vocab_size")
    for key in sorted(config_one.keys() | config_two.keys()):
        one, two = config_one.get(key), config_two.get(key)
        if one == two or (not one and not two) or (key in _DERIVED and None in (one, two)):
            continue
        line = f"config.json: {key} is {json.dumps(one)} in base and {json.dumps(two)} in aligned"
        if key in _WINDOW:
            warnings.append(line)
        else:
            problems.append(line)
    for name, checkpoint in (("base", base), ("aligned", aligned)):
        if checkpoint.config.get("quantization_config"):
            problems.append(f"{name} is quantised: interpolation does not commute with quantisation; give the original")


def meaning(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that the weights' meaning depends on, alike for all versions of transformers.

    Newer versions write defaults out and keep the rotary embedding's numbers in one table, `rope_parameters`; a base
    checkpoint and one that was fine-tuned from it later must not seem to differ because of that.
    """
    values = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    rope: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        table = values.pop(key, None)
        rope |= table if isinstance(table, dict) else {}
    rope |= {key: values.pop(key) for key in ("rope_theta", "partial_rotary_factor") if values.get(key) is not None}
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    return values | {f"rope_{key.removeprefix('rope_')}": value for key, value in rope.items()}


def _compare_tensors(base: Checkpoint, aligned: Checkpoint, problems: list[str], is_shared: bool) -> None:
    def named(what: str, names: set[str]) -> None:
        if names:
            shown = sorted(names, key=natural_key)
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            problems.append(f"{what}: {', '.join(shown[:_SHOWN])}{more}")

    named("tensors only in base", base.tensors.keys() - aligned.tensors.keys())
    named("tensors only in aligned", aligned.tensors.keys() - base.tensors.keys())
    if ("lm_head.weight" in base.tensors) != ("lm_head.weight" in aligned.tensors):
        problems.append("one checkpoint ties its input and output embeddings and the other does not: save both alike")
    differing: list[str] = []
    for name in base.tensors.keys() & aligned.tensors.keys():
        one, two = base.tensors[name], aligned.tensors[name]
        skipped = int(is_shared and has_vocabulary_rows(name))
        if (one.shape[skipped:], one.dtype) != (two.shape[skipped:], two.dtype):
            differing.append(
                f"{name} is {list(one.shape)} {one.dtype} in base and {list(two.shape)} {two.dtype} in aligned"
            )
    differing.sort(key=natural_key)
    problems += differing[:_SHOWN]
    if len(differing) > _SHOWN:
        problems.append(f"and {len(differing) - _SHOWN} more tensors of different shape or dtype")
    unusable = {name for name, info in base.tensors.items() if info.dtype not in _FLOATS}
    named("tensors that are not F16, BF16 or F32 cannot be interpolated", unusable)
