"""This runs `lambdasweep run` and its like as processes of their own, and looks at what they leave behind."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from contract.rundir import RunDir
from tests.support.paths import ROOT
from tests.support.waiting import finish, until
from tests.support.warm_python import descendants, warm_python


class Sweep:
    """This is one `lambdasweep run` process, a warm Python as its replicas are."""

    command = "run"

    def __init__(self, out: Path, arguments: list[str]) -> None:
        self.log = out.parent / f"{out.name}.log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [warm_python(), "-m", "lambdasweep", self.command, "--out", str(out), *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.out = out

    def wait(self) -> int:
        """Wait for it to end, for as long as it goes on; return its status."""
        return finish(self.process, self.log, shows=self.tables)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, for as long as it goes on; it may not end before."""

        def holds() -> Any:
            ended = self.process.poll() is not None
            value = condition()
            assert value or not ended, f"it ended with status {self.process.returncode}:\n{self.text()[-6000:]}"
            return value

        return until(holds, shows=lambda: (self.log.stat().st_size, self.tables()))

    def tables(self) -> int:
        """Return how many tables are committed; a batch has one folder of them."""
        return tables(self.out) + len([*self.out.glob("scores/*.parquet")])

    def text(self) -> str:
        return self.log.read_text()

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in self.descendants():
            try:
                if process.cmdline() and process.cmdline()[0].startswith("ray::Replica"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def descendants(self) -> list[psutil.Process]:
        return descendants(self.process.pid)


def alive(processes: list[psutil.Process]) -> bool:
    return any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def committed(out: Path) -> dict[str, bytes]:
    """Every file of the results, by its path; receipts and the plan's history are not part of them."""
    kinds = ("requests", "tokens", "generations", "graded", "rescored", "quarantine", "metrics.parquet")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] in kinds
    }


def units(out: Path) -> int:
    tasks = RunDir(out).plan()["tasks"]
    each = {name: len(task["shards"]) * len(task["lambdas"]) for name, task in tasks.items()}
    return sum(count * (1 + len(tasks[name].get("rescored", ()))) for name, count in each.items())


def tables(out: Path) -> int:
    return sum(len([*out.glob(f"{kind}/*/*/shard-*.parquet")]) for kind in ("tokens", "generations", "rescored"))
