"""This says how many examples hypothesis draws where a test does not draw as many as most do."""

from hypothesis import settings


def examples(count: int, **others: object) -> settings:
    """Return settings by which `count` examples are drawn, or a fifth of them with the profile of `make test-fast`."""
    return settings(
        max_examples=max(count // 5, 1) if settings.get_current_profile_name() == "fast" else count, **others
    )
