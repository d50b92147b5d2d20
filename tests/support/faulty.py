"""Replicas with real engines that fail in chosen ways. `LAMBDASWEEP_FAULTS` names a folder that remembers what happened."""

import os
import signal
from pathlib import Path

from contract.units import Unit
from ray_jobs.replica import Replica

POISON = 3  # the request that ends every process that scores it


class FaultyReplica(Replica):
    """Stops dead at its first unit, once in a sweep; dies of `POISON`."""

    def _work(self, unit: Unit):
        if POISON in {*range(unit.first_row, unit.end_row)} - {row for row, _ in unit.offenders}:
            os._exit(1)
        hung = Path(os.environ["LAMBDASWEEP_FAULTS"]) / "hung"
        if not hung.exists():
            hung.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super()._work(unit)
