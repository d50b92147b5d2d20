"""A pair: checkpoints of one architecture, checked so that the line between them means something.

One is base and one aligned; or several are, each with a name, and θ is on the plane through all of them.
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

# What a config may differ in without touching what the weights mean. Post-training changes generation defaults and the
# window; everything else (sizes, activations, rotary base, norms) must agree.
_IRRELEVANT = {
    "_name_or_path", "_model_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "attention_dropout", "hidden_dropout",
    "initializer_range", "pretraining_tp", "auto_map", "use_flash_attn", "tokenizer_class", "gradient_checkpointing",
    "transformers.js_config", "unsloth_version", "unsloth_fixed", "_attn_implementation_autoset",
}  # fmt: skip
# Follow from other keys or from the tensors where they are absent: older versions of transformers do not write them.
_DERIVED = {"head_dim", "num_key_value_heads", "layer_types", "tie_word_embeddings"}
_WINDOW = {"max_position_embeddings", "sliding_window", "use_sliding_window", "max_window_layers"}
_FLOATS = {"F16", "BF16", "F32"}
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """Parents that passed every check made so far, and the line between them.

    `warnings` are differences that do not stop a sweep. `max_position_embeddings` is the smallest of all windows.
    """

    base: Checkpoint
    aligned_by_name: Mapping[str, Checkpoint]  # sorted; the only one's name is ""
    warnings: tuple[str, ...]
    line: Line = STRAIGHT
    weights: Mapping[str, str] = field(default_factory=dict)  # on λ, of the tensors that the line's map names
    aligned_rows: Mapping[str, Spans] = field(default_factory=dict)  # that are aligned's at every λ; none where strict

    @property
    def aligned(self) -> Checkpoint:
        """The aligned checkpoint; of several the first by name, whose tokenizer and template are aligned's."""
        return next(iter(self.aligned_by_name.values()))

    @property
    def parents(self) -> dict[str, Checkpoint]:
        """All of them by role: `base`, and `aligned` or `aligned.NAME`, in the order that `merge.interpolate` takes."""
        return {"base": self.base} | {role(name): one for name, one in self.aligned_by_name.items()}

    def parent(self, name: str) -> Checkpoint:
        """Return the parent that a user calls `base`, `aligned`, or by its name."""
        return {"base": self.base, "aligned": self.aligned, **self.aligned_by_name}[name]

    @property
    def shaped(self) -> Checkpoint:
        """The parent that θ(λ) has the config, the shapes and the tokenizer of."""
        return self.aligned if self.line.has_aligned_shapes else self.base

    @property
    def ends_at_aligned(self) -> bool:
        """λ = 1 is the aligned parent."""
        return all(self.weights.get(name, "1") == "1" for name in self.base.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all parents."""
        return sum(parent.nbytes for parent in self.parents.values())

    @property
    def max_position_embeddings(self) -> int | None:
        windows = [checkpoint.config.get("max_position_embeddings") for checkpoint in self.parents.values()]
        return min((window for window in windows if isinstance(window, int)), default=None)


def open_pair(
    base: str,
    aligned: str | Mapping[str, str],
    base_revision: str | None = None,
    aligned_revision: str | Mapping[str, str | None] | None = None,
    line: Line = STRAIGHT,
) -> Pair:
    """Open all checkpoints and hold their configs, tensor names, shapes, dtypes and vocabularies against base's.

    Reads headers and tokenizers only; `fingerprint` reads the weights.

    Args:
        base: directory or hub id.
        aligned: likewise; several by name.
        base_revision: branch, tag or commit of a hub id.
        aligned_revision: likewise; by name where there are several.
        line: between them.

    Raises:
        PairError: with everything that does not match, of all checkpoints, at once.
        InputError: the line's map does not fit their tensors, or it is a line between two.
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
    """Make a pair of checkpoints that fit together (`open_pair` checks that), from their headers and tokenizers.

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
    """Return what of a config the weights' meaning depends on, written as one version of transformers or another.

    Newer versions write defaults out and keep the rotary embedding's numbers in one table, `rope_parameters`; a base
    checkpoint and one that was fine-tuned from it later must not seem to differ for that.
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
