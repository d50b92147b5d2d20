"""This module tells whether two checkpoints mean the same string by the same token id.

It reads the tokenizer files itself and needs no tokenizer library.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merge.checkpoint import Checkpoint
from merge.lam_map import EMBEDDINGS, HEADS

RowRanges = tuple[tuple[int, int], ...]  # ranges [start, stop) of rows, in ascending order, which do not touch

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_SHOWN = 5
_ROWS = re.compile(rf"(.*\.)?({'|'.join((*EMBEDDINGS, *HEADS))})\.(weight|bias)|output\.(weight|bias)")


def compare_vocabularies(
    base: Path, aligned: Path, problems: list[str], warnings: list[str], is_shared: bool = False
) -> None:
    """Compare the strings of two vocabularies token id by token id.

    A token id that stands for different strings is a problem unless `is_shared`, because its two embedding rows are no
    versions of one thing, and no line between them means anything. Different roles of the same tokens (post-training often
    ends a turn with another token) are a warning, because they do not change what an id means.
    """
    one, two = token_strings(base), token_strings(aligned)
    if one is None or two is None:
        for role, path, vocabulary in (("base", base, one), ("aligned", aligned, two)):
            if vocabulary is None and is_shared:
                problems.append(f"{role} has no readable tokenizer.json in {path}, which --vocab shared goes by")
            elif vocabulary is None:
                warnings.append(f"{role} has no readable tokenizer.json in {path}: the vocabularies were not compared")
        return
    differing = sorted(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
    if is_shared and len(differing) == len(one.keys() | two.keys()):
        problems.append("no token id stands for the same string in base and aligned: there is no vocabulary to share")
    elif differing and not is_shared:
        shown = ", ".join(f"{token}: {one.get(token)!r} / {two.get(token)!r}" for token in differing[:_SHOWN])
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        problems.append(
            f"{len(differing)} token ids stand for different strings in base / aligned: {shown}{more}; "
            "--vocab shared takes the rows of such ids from aligned"
        )
    roles_one, roles_two = _roles(base), _roles(aligned)
    for role in _ROLES:
        if roles_one.get(role) != roles_two.get(role):
            warnings.append(f"{role} is {roles_one.get(role)!r} in base and {roles_two.get(role)!r} in aligned")


def has_vocabulary_rows(name: str) -> bool:
    """Tell whether a tensor has one row for each token id: an embedding or an LM head, by its name."""
    return _ROWS.fullmatch(name) is not None


def aligned_rows(base: Checkpoint, aligned: Checkpoint) -> dict[str, RowRanges]:
    """Return the rows of embedding and LM head that no line goes through, by the tensor's name.

    They belong to token ids that stand for different strings, that stand for a string in one parent only, or that base has
    no row for. The rows beyond both vocabularies, with which checkpoints are padded, are not among them: they are
    interpolated.
    """
    one, two = token_strings(base.path) or {}, token_strings(aligned.path) or {}
    differing = {token for token in one.keys() | two.keys() if one.get(token) != two.get(token)}
    found: dict[str, RowRanges] = {}
    for name, info in aligned.tensors.items():
        if has_vocabulary_rows(name):
            rows, common = info.shape[0], min(info.shape[0], base.tensors[name].shape[0])
            kept = sorted({*(token for token in differing if token < common), *range(common, rows)})
            if kept:
                starts = [
                    row for row, before in zip(kept, [-1, *kept], strict=False) if row - 1 != before or before < 0
                ]
                stops = [row + 1 for row, after in zip(kept, [*kept[1:], -1], strict=True) if row + 1 != after]
                found[name] = tuple(zip(starts, stops, strict=True))
    return found


def runs(first: int, stop: int, ranges: RowRanges) -> Iterator[tuple[int, int, bool]]:
    """Cut the rows [first, stop) where ranges begin and end; yield each part's (first, stop, whether it is in a range)."""
    for start, end in ranges:
        start, end = max(start, first), min(end, stop)
        if start < end:
            if first < start:
                yield first, start, False
            yield start, end, True
            first = end
    if first < stop:
        yield first, stop, False


def token_strings(path: Path) -> dict[int, str] | None:
    """Return the string of each token id of a `tokenizer.json`, or None where there is none that can be read."""
    tokenizer = _json(path / "tokenizer.json")
    if tokenizer is None:
        return None
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, dict):
            strings = {int(token): str(text) for text, token in vocabulary.items()}
        else:  # a Unigram vocabulary is a list [[text, score], …]
            strings = {token: str(entry[0]) for token, entry in enumerate(vocabulary)}
        for entry in tokenizer.get("added_tokens") or []:
            strings[int(entry["id"])] = str(entry["content"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return strings


def tokenizer_digest(path: Path) -> str | None:
    """Return the SHA-256 of `tokenizer.json`, which alone decides how text becomes ids, or None where there is none."""
    try:
        return hashlib.sha256((path / "tokenizer.json").read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _roles(path: Path) -> dict[str, str | None]:
    config = _json(path / "tokenizer_config.json") or {}
    roles: dict[str, str | None] = {}
    for role in _ROLES:
        token = config.get(role)
        roles[role] = token.get("content") if isinstance(token, dict) else token
    return roles


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
