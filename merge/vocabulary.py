"""Do two checkpoints mean the same string by the same token id? Read from the tokenizer files, no tokenizer library."""

import hashlib
import json
from pathlib import Path
from typing import Any

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_SHOWN = 5


def compare_vocabularies(base: Path, aligned: Path, problems: list[str], warnings: list[str]) -> None:
    """Compare token strings id by id.

    A token id that stands for different strings is a problem: its embedding row is then no line between two versions of
    one thing. Different roles of the same tokens (post-training often ends a turn with another token) are a warning: they
    do not change what an id means.
    """
    one, two = token_strings(base), token_strings(aligned)
    if one is None or two is None:
        for role, path, vocabulary in (("base", base, one), ("aligned", aligned, two)):
            if vocabulary is None:
                warnings.append(f"{role} has no readable tokenizer.json in {path}: the vocabularies were not compared")
        return
    differing = sorted(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
    if differing:
        shown = ", ".join(f"{token}: {one.get(token)!r} / {two.get(token)!r}" for token in differing[:_SHOWN])
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        problems.append(f"{len(differing)} token ids stand for different strings in base / aligned: {shown}{more}")
    roles_one, roles_two = _roles(base), _roles(aligned)
    for role in _ROLES:
        if roles_one.get(role) != roles_two.get(role):
            warnings.append(f"{role} is {roles_one.get(role)!r} in base and {roles_two.get(role)!r} in aligned")


def token_strings(path: Path) -> dict[int, str] | None:
    """Return token id → string of a `tokenizer.json`, or None where there is none that can be read."""
    tokenizer = _json(path / "tokenizer.json")
    if tokenizer is None:
        return None
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, dict):
            strings = {int(token): str(text) for text, token in vocabulary.items()}
        else:  # Unigram: [[text, score], …]
            strings = {token: str(entry[0]) for token, entry in enumerate(vocabulary)}
        for entry in tokenizer.get("added_tokens") or []:
            strings[int(entry["id"])] = str(entry["content"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return strings


def tokenizer_digest(path: Path) -> str | None:
    """SHA-256 of `tokenizer.json`, which alone decides how text becomes ids; None where there is none."""
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
