"""This module knows where the files of a run directory are; `contract.commit` writes them.

    RUN/sweep.json                                    the sweep's identity; written once, never changed
    RUN/plan.json                                     the tasks, and the λs asked for so far; it grows
    RUN/requests/task=<task>.parquet                  the requests that are scored at every λ
    RUN/tokens/task=<task>/lambda=<λ>/shard-00017.parquet
                                                      the scores; a point with several coordinates is percent-encoded
    RUN/generations/…                                 the samples of generate tasks and answers, in the same layout
    RUN/rescored/task=<task>@<λ>/…                    the scores of these under another λ, in the same layout
    RUN/graded/…                                      what became of the answers, computed of them; one table for each λ
    RUN/quarantine/…                                  what could not be scored or sampled and why, in the same layout
    RUN/receipts/….json                               times, hosts and cache counts, in the same layout; no results
    RUN/driver.json                                   how the driver does, replaced every few seconds; no result either
    RUN/history.json                                  the commands, and the kinds of hardware; no result either
    RUN/lm_eval/task=<task>.parquet                   lm-eval's own metrics of its tasks, computed from the tables
    RUN/each/lambda=0.35/…                            what a command of the user wrote at a λ; nobody reads it afterwards
    RUN/each/lambda=0.35/failed.txt                   why its last try there has no results, for whoever asks for the status
    RUN/aside/lambda=0.35.1/…                         the same of a λ that was broken off, or failed
    RUN/measured/lambda=0.35.parquet                  what it measured there, which is the completion record of that λ
    RUN/metrics.parquet                               our metrics, computed from the tables, replaced as a whole
    RUN/report/…                                      index.html, figures, frontier.json, bins.parquet, all replaced too
    RUN/damaged/…                                     tables that were found damaged, in the same layout; nobody reads them

A committed file is the completion record. On a disk a file under its final name is complete because it is written under a
temporary name, flushed, and renamed; on an object store (`contract.location`) because an upload shows under its name only
when it is complete. There is no other bookkeeping, so killing anything at any time loses at most the units in flight.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract import schemas
from contract.commit import TEMPORARY
from contract.errors import InputError, RunMismatchError
from contract.lease import hold
from contract.location import Location, ObjectPath, locate, read_json
from contract.points import from_path, in_path, order
from contract.units import Receipt, rescored_name
from contract.whole_tables import problem_of, read_or_problem

_OF_COMMANDS = ("each", "aside")  # folders in which a command of the user writes, or wrote
_COMPLETIONS = ("tokens", "generations", "rescored", "scores")  # the kinds of tables of which one completes a unit
_SHARD = re.compile(r"shard-(\d{5,})\.parquet")
_LOOKS = 50_000  # tables whose ends are looked at when they are listed
_READS = 16  # reads from an object store that run at a time: each mostly waits for its answer


class RunDir:
    """Names and reads the files of one run directory."""

    def __init__(self, root: str | os.PathLike[str] | ObjectPath) -> None:
        """`root` is a path, or the URL of an object store (`contract.location.locate`)."""
        self.root: Location = locate(root)
        self.damaged: dict[Location, str] = {}  # tables that were found damaged so far, and how; they count as absent
        # The names of whole tables, by folder; none changes once it is committed.
        self._whole: dict[Location, set[str]] = {}
        self._looks = _LOOKS

    # These methods name files.

    @property
    def sweep_json(self) -> Location:
        return self.root / "sweep.json"

    @property
    def plan_json(self) -> Location:
        return self.root / "plan.json"

    @property
    def driver_json(self) -> Location:
        return self.root / "driver.json"

    @property
    def history_json(self) -> Location:
        return self.root / "history.json"

    @property
    def metrics_parquet(self) -> Location:
        return self.root / "metrics.parquet"

    @property
    def frontier_json(self) -> Location:
        return self.root / "report" / "frontier.json"

    @property
    def index_html(self) -> Location:
        return self.root / "report" / "index.html"

    @property
    def bins_parquet(self) -> Location:
        return self.root / "report" / "bins.parquet"

    @property
    def metrics_csv(self) -> Location:
        return self.root / "report" / "metrics.csv"

    def figure(self, name: str) -> Location:
        """Return the path of a figure for a paper; `name` includes the file's ending."""
        return self.root / "report" / "figures" / name

    def requests(self, task: str) -> Location:
        return self.root / "requests" / f"task={task}.parquet"

    def outcomes(self, task: str) -> Location:
        """Return the path of lm-eval's own metrics of `task`, which is a task, or a group together with its members."""
        return self.root / "lm_eval" / f"task={task}.parquet"

    def all_outcomes(self) -> list[Location]:
        """Return the paths of all tables of lm-eval's own metrics that are there, sorted by name."""
        folder = self.root / "lm_eval"
        found = [name for name in names(folder) if name.startswith("task=") and name.endswith(".parquet")]
        return [folder / name for name in sorted(found)]

    def command_folder(self, lam: str) -> Location:
        """Return the folder of a command of the user at one λ."""
        return self.root / "each" / f"lambda={in_path(lam)}"

    def failure(self, lam: str) -> Location:
        """Return the path of what is said of a command's last try at one λ, if it failed or its results were refused."""
        return self.command_folder(lam) / "failed.txt"

    def measured(self, lam: str) -> Location:
        """Return the path of what a command of the user measured at one λ."""
        return self.root / "measured" / f"lambda={in_path(lam)}.parquet"

    def all_measured(self) -> dict[str, Location]:
        """Return the paths of all tables of what commands measured that are there and whole, by λ, in order."""
        folder, end = self.root / "measured", ".parquet"
        found = {
            from_path(name.removeprefix("lambda=").removesuffix(end)): folder / name
            for name in names(folder)
            if name.startswith("lambda=") and name.endswith(end) and self.is_whole(folder / name)
        }
        return {lam: found[lam] for lam in sorted(found, key=order)}

    def measured_tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield λ and table of what commands of the user measured, in order; damaged tables are absent, and noted."""
        for lam, path in self.all_measured().items():
            table, problem = read_or_problem(path)
            if table is not None and "point" not in table.column_names:
                table, problem = None, "is no table of what a command measured"
            elif table is not None and (others := {*table.column("point").to_pylist()} - {lam}):
                table, problem = None, f"is another table, moved or copied there: that of λ = {min(map(str, others))}"
            if table is None:
                self.damaged[path] = problem
            else:
                yield lam, table

    def unit(self, kind: str, task: str, lam: str, shard: int) -> Location:
        """Return the path of one unit's file; `kind` is tokens, generations, rescored, quarantine or receipts."""
        suffix = "json" if kind == "receipts" else "parquet"
        return self.root / kind / f"task={task}" / f"lambda={in_path(lam)}" / f"shard-{shard:05d}.{suffix}"

    # These methods read what is there.

    def exists(self) -> bool:
        return self.sweep_json.is_file()

    def check_store(self) -> None:
        """Ask an object store whether it can be used; few tries tell so before anything waits long for it.

        Raises:
            InputError: the object store cannot be used.
        """
        if isinstance(self.root, ObjectPath):
            self.root.check()

    def sweep(self) -> dict[str, Any]:
        """Return sweep.json as it is; `contract.records.read_sweep` makes a record of it.

        Raises:
            InputError: `root` holds no sweep.
        """
        return self._json(self.sweep_json, {"pair", "engine", "versions"})

    def plan(self) -> dict[str, Any]:
        """Return plan.json as it is, `{"tasks": {name: {…}}}`; `contract.records.read_plan` makes records of it.

        Raises:
            InputError: `root` holds no sweep.
        """
        return self._json(self.plan_json, {"tasks"})

    def _json(self, path: Location, keys: set[str]) -> dict[str, Any]:
        self.check_store()
        if isinstance(self.root, Path) and not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise InputError(f"{self.root} {what}: give the directory that `lambdasweep run --out` wrote")
        try:
            value: dict[str, Any] = read_json(path)
            if not (isinstance(value, dict) and keys <= value.keys()):
                raise ValueError(f"it lacks {', '.join(sorted(keys))}")
        except FileNotFoundError:
            raise self._is_none(path) from None
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): restore it, or start again in another directory") from None
        return value

    def _is_none(self, missing: Location) -> InputError:
        """Return why the directory is no run, by the record that it lacks; whichever is read first, the reason is one."""
        if (self.root / "score.json").is_file():
            return InputError(
                f"{self.root} is of `lambdasweep score`, and not a run directory: give one of `lambdasweep run`"
            )
        first = self.sweep_json if missing == self.plan_json and not self.sweep_json.is_file() else missing
        return InputError(f"{self.root} is not a run directory: it has no {first.name}")

    def committed(self, task: str, lam: str, kind: str = "tokens") -> set[int]:
        """Return the numbers of the shards whose `kind` file is committed, and not damaged as far as its ends tell."""
        folder = self.unit(kind, task, lam, 0).parent
        return {
            int(match[1])
            for name in names(folder)
            if (match := _SHARD.fullmatch(name)) and self.is_whole(folder / name)
        }

    def is_whole(self, path: Location) -> bool:
        """Tell whether a table is whole as far as its ends, and what was read so far, tell; notes those that are not.

        In an object store, where that would be a request each, a table counts as whole until it is read. So does one beyond
        the first `_LOOKS`: to look at all of a very large run would take minutes.
        """
        if path in self.damaged:
            return False
        if isinstance(path, Path) and path.suffix == ".parquet" and self._looks:
            whole = self._whole.setdefault(path.parent, set())
            if path.name not in whole:
                self._looks -= 1
                if problem := problem_of(path):
                    self.damaged[path] = problem
                    return False
                whole.add(path.name)
        return True

    def all_committed(self, kind: str = "tokens") -> dict[tuple[str, str], set[int]]:
        """Return the committed shard numbers of every task and λ that has any, by (task, canonical point).

        It takes one listing, on an object store one request for every 1000 files, however they are spread.
        """
        root, found = self.root / kind, dict[tuple[str, str], set[int]]()
        files: Iterable[tuple[str, str]]  # the folder task=…/lambda=… and the name of each file
        if isinstance(root, ObjectPath):
            start = len(root.key) + 1
            files = ((folder, name) for path in root.walk() for folder, _, name in [path.key[start:].rpartition("/")])
        else:
            folders = [f"{path.parent.name}/{path.name}" for path in root.glob("task=*/lambda=*")]
            files = ((folder, name) for folder in folders for name in names(root / folder))
        for folder, name in files:
            if (match := _SHARD.fullmatch(name)) and self.is_whole(root / folder / name):
                task, _, lam = folder.removeprefix("task=").partition("/lambda=")
                found.setdefault((task, from_path(lam)), set()).add(int(match[1]))
        return found

    def begun(self, task: str, lambdas: Iterable[str], kind: str = "tokens") -> list[str]:
        """Return those λs of `lambdas` that may have a committed table of the task; it takes one listing."""
        there = set(names(self.root / kind / f"task={task}"))
        return [lam for lam in lambdas if self.unit(kind, task, lam, 0).parent.name in there]

    def receipt(self, task: str, lam: str, shard: int) -> Receipt | None:
        """Return the receipt of a unit, or None where it is missing or cannot be read."""
        return _read_receipt(self.unit("receipts", task, lam, shard))

    def receipts(self) -> Iterator[Receipt]:
        """Yield the receipts of committed tables, in no order; those that cannot be read are left out."""
        folder = self.root / "receipts"
        found: Iterator[Location] = (
            folder.walk() if isinstance(folder, ObjectPath) else folder.rglob("shard-*.json")  # as they are listed
        )
        for path in found:
            inside = str(path).removeprefix(f"{folder}/").removesuffix(".json")
            is_committed = any((self.root / kind / f"{inside}.parquet").is_file() for kind in _COMPLETIONS)
            if is_committed and (receipt := _read_receipt(path)) is not None:
                yield receipt

    def driver(self) -> dict[str, Any] | None:
        """Return driver.json (see `lambdasweep.monitor.heartbeat`), or None where it is missing or damaged."""
        return _read_json(self.driver_json)

    def history(self) -> tuple[list[str], list[str]]:
        """Return the commands in history.json, in their order, and the kinds of hardware, sorted (see
        `lambdasweep.monitor.history`); none where it is missing or damaged."""
        value = _read_json(self.history_json)
        found = [value.get(key) if isinstance(value, dict) else None for key in ("commands", "hardware")]
        commands, hardware = ([*map(str, one)] if isinstance(one, list) else [] for one in found)
        return commands, hardware

    def tokens(self, task: str, lam: str) -> pa.Table:
        """Return the committed rows of one task at one λ, in request order; no rows where nothing is committed.

        Rows of a table that turns out to be damaged are absent, and `damaged` then holds it.
        """
        return self._rows("tokens", task, lam)

    def generations(self, task: str, lam: str) -> pa.Table:
        """Return the committed samples of one generate task at one λ, in the order of its prompts."""
        return self._rows("generations", task, lam)

    def graded(self, task: str, lam: str) -> pa.Table:
        """Return what became of the outputs of one task at one λ, in the order of its prompts."""
        return self._rows("graded", task, lam)

    def rescored(self, task: str, lam: str, under: str) -> pa.Table:
        """Return what another λ, `under`, makes of the outputs of one task at a λ, in the order of its prompts."""
        return self._rows("rescored", rescored_name(task, under), lam)

    def quarantine(self, task: str, lam: str) -> pa.Table:
        """Return the requests of one task that could not be scored or sampled at one λ, and why."""
        return self._rows("quarantine", task, lam)

    def _rows(self, kind: str, task: str, lam: str) -> pa.Table:
        known = {
            "tokens": schemas.TOKENS,
            "generations": schemas.GENERATIONS,
            "graded": schemas.GRADED,
            "rescored": schemas.RESCORED,
        }
        schema = known.get(kind, schemas.QUARANTINE)
        units = [(task, lam, shard) for shard in sorted(self.committed(task, lam, kind))]
        paths = [self.unit(kind, *unit) for unit in units]
        if isinstance(self.root, ObjectPath) and len(paths) > 1:
            with ThreadPoolExecutor(_READS) as pool:
                read = list(pool.map(read_or_problem, paths, units))
        else:
            read = list(map(read_or_problem, paths, units))
        self.damaged |= {path: problem for path, (table, problem) in zip(paths, read, strict=True) if table is None}
        there = [schemas.with_point(table).replace_schema_metadata(None) for table, _ in read if table is not None]
        tables = [schemas.with_columns(table, schema) for table in there]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def sweep_temporaries(self) -> int:
        """Delete the files that interrupted writers left behind and return their number. Call it under `lock`.

        Files of a user's command are not ours to delete.

        On an object store writers leave unfinished multipart uploads of tables of more than 10 MB, which nobody sees and
        pyarrow cannot list: a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) clears those away.
        """
        if isinstance(self.root, ObjectPath):
            return 0
        folders = [path for path in self.root.iterdir() if path.is_dir() and path.name not in _OF_COMMANDS]
        found = [self.root.glob(f".*{TEMPORARY}"), *(folder.rglob(f".*{TEMPORARY}") for folder in folders)]
        stale = [path for some in found for path in some if path.is_file()]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one driver at a time; the kernel releases it when the process ends, however it ends.

        On an object store the lock is a lease (`contract.lease`), which is less certain.

        Raises:
            RunMismatchError: another process is sweeping into this directory.
        """
        if isinstance(self.root, ObjectPath):
            with hold(self.root / "lease.json"):
                yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunMismatchError(
                    f"another lambdasweep process is writing to {self.root}: wait for it, or stop it first"
                ) from None
            yield


def names(folder: Location) -> list[str]:
    """Return the names of the entries of a folder, and no names where there is no such folder."""
    if isinstance(folder, ObjectPath):
        return [path.name for path in folder.iterdir()]
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_receipt(path: Location) -> Receipt | None:
    value = _read_json(path)
    try:
        return None if value is None else Receipt.from_json(value)
    except ValueError:  # another version wrote it
        return None


def _read_json(path: Location) -> dict[str, Any] | None:
    """Read a JSON file that is no result: no result depends on it, so a file that cannot be read is no error."""
    try:
        value: dict[str, Any] = read_json(path)
    except (OSError, ValueError):
        return None
    return value
