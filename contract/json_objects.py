"""JSON in which a key stands twice in one object says two things, of which Python keeps the last in silence."""

from typing import Any


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, for `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: a key stands there twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object: keep one of them")
    return made
