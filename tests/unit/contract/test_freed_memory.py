"""What freed arrays took is there for the next ones."""

import platform
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

CODE = """
import resource, sys
import numpy as np
from contract.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory(32 << 20)
def work():
    arrays = [np.ones(3_000_000) for _ in range(4)]  # 24 MB each
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_arrays_are_mapped_once() -> None:
    left, kept = (
        int(subprocess.run([sys.executable, "-c", CODE, how], cwd=ROOT, capture_output=True, check=True).stdout)
        for how in ("left", "kept")
    )
    assert left > 5 * 4 * 24_000_000 / (2 << 20)  # at least a fault for each huge page
    assert kept < left / 20
