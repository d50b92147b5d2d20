"""Whether an LM head is the embedding is decided by the tensors, and not by the config's flag alone.

A checkpoint ties them (`tie_word_embeddings`), or it has a head of its own. Flags get lost when checkpoints are saved, and
files hold heads that a flag says are not there. So a checkpoint counts as having a head of its own if it holds one and
either its config does not tie or the head differs from the embedding, as newer versions of transformers load it, too. If no
parent has a head of its own, θ(λ) is tied, and copies of the embedding are left out. Otherwise θ(λ) has a head, and the
head of a parent that holds none is its embedding.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from merge.checkpoint import Checkpoint, TensorInfo, natural_key
from merge.config_meaning import class_default
from merge.lam_map import EMBEDDINGS, HEADS

_HEAD = re.compile(rf"(.*\.)?({'|'.join(HEADS)})\.weight|output\.weight")
_EMBEDDING = re.compile(rf"(.*\.)?({'|'.join(EMBEDDINGS)})\.weight")
FLAG = "tie_word_embeddings"
_CHUNK = 4 << 20  # bytes that are compared at a time


def unify_heads(
    parents: Mapping[str, Checkpoint], problems: list[str], warnings: list[str], is_shared: bool = False
) -> dict[str, Checkpoint]:
    """Return the parents with heads alike: all have one or none has, by role.

    Args:
        parents: all parents by role, with the tensors that they hold.
        problems: gets a line if there is no head and no config ties.
        warnings: gets a line for each parent that is not what its config says, or what it holds.
        is_shared: whether θ(λ) has aligned's shapes (`--vocab shared`).
    """
    heads = {role: head_of(parent.tensors) for role, parent in parents.items()}
    flags = {role: ties(parent.config) for role, parent in parents.items()}
    own = {role: has_own_head(parent) for role, parent in parents.items()}
    if not any(heads.values()):
        if flags and all(flag is False for flag in flags.values()) and all(map(embedding_of, parents.values())):
            problems.append(
                f"no parent has an LM head, and no config.json says that it is the embedding: add lm_head.weight, or {FLAG}"
            )
        elif untied := " and ".join(
            role for role, parent in parents.items() if flags[role] is False and embedding_of(parent)
        ):
            warnings.append(f"{untied} has no LM head, though its {FLAG} is false: its head is taken for its embedding")
        return dict(parents)
    found: dict[str, Checkpoint] = {}
    name = next(head for role, head in heads.items() if head and (own[role] or not any(own.values())))
    for role, parent in parents.items():
        head = heads[role]
        if not any(own.values()):
            found[role] = replace(parent, tensors={key: info for key, info in parent.tensors.items() if key != head})
            if head:
                warnings.append(f"{role}: {head} is a copy of the embedding: left out")
        elif head:
            found[role] = parent
            if own[role] and flags[role]:
                warnings.append(f"{role} has {head} of its own, though its {FLAG} is true: θ(λ) has a head of its own")
            elif flags[role]:
                warnings.append(
                    f"{role} ties its LM head, and θ(λ) has a head of its own: that of {role} is {head}, its copy of the "
                    "embedding"
                )
        else:
            embedding = embedding_of(parent)
            if embedding is None:
                found[role] = parent
                continue
            tensors = parent.tensors | {name: parent.tensors[embedding]}
            found[role] = replace(parent, tensors={key: tensors[key] for key in sorted(tensors, key=natural_key)})
            warnings.append(
                f"{role} ties its LM head to {embedding}, and θ(λ) has a head: that of {role} is its embedding"
            )
            if is_shared and role != "base":
                problems.append(
                    "--vocab shared needs an LM head in aligned where base has one of its own: save both alike"
                )
    return found


def ties(config: Mapping[str, Any]) -> bool | None:
    """Tell whether a config ties the head to the embedding; None where it does not say and its class is not known."""
    text = config.get("text_config")
    for level in (config, text if isinstance(text, dict) else {}):
        if isinstance(level.get(FLAG), bool):
            return bool(level[FLAG])
    default = class_default(str(config.get("model_type")), FLAG)
    return default if isinstance(default, bool) else None


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint has an LM head of its own; where its config ties, this reads head and embedding."""
    head, embedding = head_of(checkpoint.tensors), embedding_of(checkpoint)
    if head is None:
        return False
    # What a wrapper for several modalities holds is what counts, see `merge.text_part`.
    if embedding is None or _is_wrapper(checkpoint) or ties(checkpoint.config) is False:
        return True
    return not _is_same(checkpoint.tensors[head], checkpoint.tensors[embedding])


def flags_for(checkpoint: Checkpoint, is_tied: bool) -> dict[str, Any]:
    """Return what of a config is to be changed so that it says whether the head is tied; mostly nothing."""
    if ties(checkpoint.config) in (is_tied, None):
        return {}
    text = checkpoint.config.get("text_config")
    return {FLAG: is_tied} | ({"text_config": {FLAG: is_tied}} if isinstance(text, dict) else {})


def loading_flags(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what of its config is to be changed so that an engine loads a checkpoint with the head that it has."""
    if _is_wrapper(checkpoint) or embedding_of(checkpoint) is None:
        return {}
    return flags_for(checkpoint, not has_own_head(checkpoint))


def flags_of_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return what of a parent's config is to be changed for a checkpoint of these tensors."""
    return flags_for(checkpoint, head_of(tensors) is None) if embedding_of(checkpoint) else {}


def engine_parent(parents: Sequence[Checkpoint]) -> tuple[int, dict[str, Any]]:
    """Return which of some parents an engine is started with, and what of that one's config is to be changed.

    An engine without a head could not hold a θ(λ) that has one: a parent with a head of its own comes first.
    vLLM loads no adapter as a checkpoint.
    """
    loadable = [place for place, one in enumerate(parents) if not one.is_adapter]
    chosen = next((place for place in loadable if has_own_head(parents[place])), loadable[0])
    return chosen, loading_flags(parents[chosen])


def without_flag(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of a config without those that say whether its head is tied."""
    kept = {key: without_flag(value) if isinstance(value, dict) else value for key, value in changes.items()}
    return {key: value for key, value in kept.items() if key != FLAG and value != {}}


def _is_wrapper(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.config.get("text_config"), dict)


def head_of(tensors: Mapping[str, TensorInfo]) -> str | None:
    return min(filter(_HEAD.fullmatch, tensors), key=len, default=None)


def embedding_of(checkpoint: Checkpoint) -> str | None:
    return min(filter(_EMBEDDING.fullmatch, checkpoint.tensors), key=len, default=None)


@cache
def _is_same(one: TensorInfo, two: TensorInfo) -> bool:
    """Tell whether two tensors have the same numbers, from the first bytes on that differ."""
    if one == two:
        return True
    if one.update or two.update or (one.shape, one.dtype, one.stored) != (two.shape, two.dtype, two.stored):
        return False
    with open(one.file, "rb") as first, open(two.file, "rb") as second:
        first.seek(one.begin)
        second.seek(two.begin)
        for start in range(one.begin, one.end, _CHUNK):
            size = min(_CHUNK, one.end - start)
            if first.read(size) != second.read(size):
                return False
    return True
