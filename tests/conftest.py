"""This marks the real tests, and loads the fixtures of the command line."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.command_line import begun, few_resamples, flags, handed, lambdasweep, pair, refused

__all__ = ["begun", "few_resamples", "flags", "handed", "lambdasweep", "pair", "refused"]  # fixtures

# A busy machine may take long over any example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

REAL = Path(__file__).parent / "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(REAL):
            item.add_marker("real")
