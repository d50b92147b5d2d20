"""This has replicas with real engines fail in chosen ways. The folder `LAMBDASWEEP_FAULTS` remembers what happened."""

import os
import signal
from pathlib import Path

from contract.units import Receipt, Unit
from ray_jobs.replica import Replica

POISON = 3  # this request ends every process that scores it


class FaultyReplica(Replica):
    """This replica hangs at its first unit, once in a sweep, and dies of `POISON`."""

    def _work(self, unit: Unit):
        if POISON in {*range(unit.first_row, unit.end_row)} - {row for row, _ in unit.offenders}:
            os._exit(1)
        hung = Path(os.environ["LAMBDASWEEP_FAULTS"]) / "hung"
        if not hung.exists():
            hung.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super()._work(unit)


class ReplicaOfAChangedParent(Replica):
    """Somebody writes another model into the aligned parent's file after the first unit of a sweep."""

    def run(self, unit: Unit) -> Receipt:
        receipt = super().run(unit)
        folder = Path(os.environ["LAMBDASWEEP_FAULTS"])
        with open(folder / "aligned" / "model.safetensors", "r+b") as file:
            file.write((folder / "other" / "model.safetensors").read_bytes())
        return receipt
