"""What holds for every test: which ones are real, and that the process's signal handlers are its own."""

from pathlib import Path

import pytest

REAL = Path(__file__).parent / "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(REAL):
            item.add_marker("real")
