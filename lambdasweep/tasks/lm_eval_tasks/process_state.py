"""lm-eval's code runs here as its evaluator runs it, and leaves loggers and random generators as they were."""

import contextlib
import logging
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's running commentary off the terminal; errors are still logged."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed the global generators as lm-eval's evaluator does, for tasks that shuffle documents; restore them at the end."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
