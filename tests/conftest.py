"""This marks the real tests, loads the fixtures of the command line, and has each process compute in one thread."""

import gc
import os
import sys
from pathlib import Path

# There is a process for each core, where a second thread would wait for the first and the first for it. NumPy and SciPy read
# this when they are imported; processes that tests start do without it.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from tests.support.command_line import begun, few_resamples, flags, handed, lambdasweep, pair, refused

__all__ = ["begun", "few_resamples", "flags", "handed", "lambdasweep", "pair", "refused"]  # fixtures

# A busy machine may take long over any example. `make test-fast` draws a fifth of them.
settings.register_profile("patient", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile("patient")

# A cluster of Ray starts as many workers as there are cores before anybody wants one, and most tests want fewer.
os.environ.setdefault("RAY_enable_worker_prestart", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# No test cuts the power, and waiting for the disk takes a twentieth of the unit tests' time. Processes of their own do wait.
os.fsync = lambda descriptor: None

REAL = Path(__file__).parent / "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(REAL):
            item.add_marker("real")


def pytest_collection_finish() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    os.environ.pop("OPENBLAS_NUM_THREADS", None)
    # No test makes garbage of what was imported, and looking through it takes a second each time.
    gc.collect()
    gc.freeze()
