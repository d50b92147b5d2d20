"""This module runs `lambdasweep each`: it serves the pair, and at each λ runs the command and collects its results."""

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from contract.commit import commit_bytes
from contract.damage import put_aside
from contract.errors import EXIT_QUARANTINE, InputError, RunMismatchError
from contract.records import EachRecord, SweepRecord
from contract.rundir import RunDir
from lambdasweep import record as run_record
from lambdasweep.each import record
from lambdasweep.each.children import Children, last_lines
from lambdasweep.each.command import environment
from lambdasweep.each.config import EachConfig
from lambdasweep.each.results import Measured, ResultsError, collect, compare_with
from lambdasweep.each.server import Position, Server, server_flags
from lambdasweep.engine_defaults import server_defaults
from lambdasweep.monitor.history import History, command_line
from lambdasweep.monitor.phase import phase
from lambdasweep.monitor.wording import counted, duration
from lambdasweep.takehome.serve import name_at, served_name

_LOG = "command.log"
_OUT = "out"
_UNASKED = (
    "the command asked the server nothing, so its results are refused: answers of another λ may have come out of a cache, "
    "or it asks another server than $OPENAI_BASE_URL"
)
_LINES = 8  # so many last lines of a failing command's log are told
_LOOK = 0.1  # seconds between two looks at a command that runs


@dataclass(frozen=True, slots=True)
class EachResult:
    """The result says how `run_each` ended."""

    run: RunDir
    done: int  # the number of λs that this call measured
    failed: tuple[str, ...]  # the number of λs at which the command failed, or its results were refused

    @property
    def exit_code(self) -> int:
        return EXIT_QUARANTINE if self.failed else 0


class _FailedError(Exception):
    """The command failed at one λ, or its results are refused; the lines say why."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(lines)
        self.lines = lines


def run_each(config: EachConfig, around: Mapping[str, str], say: Callable[[str], None]) -> EachResult:
    """Run the command at every λ that is not measured yet.

    A λ is done when the command ended with 0, the server was at λ before and after, did not move and was asked something
    meanwhile, and the results were read, with every metric that other λs have. The results are one committed file. A λ that
    was broken off leaves a directory without that file, which is moved aside before the command runs there again.

    Args:
        config: what is asked for.
        around: the environment of this process.
        say: a function that is told one line of news at a time.

    Raises:
        InputError: bad input; nothing is written. RunMismatchError, one of them: a file of the command changed meanwhile.
        EngineError: the server failed.
    """
    from merge.file_states import check_unchanged
    from merge.fingerprints import remembered_fingerprint
    from merge.pair import open_pair
    from merge.text_part import only_text
    from serve.settings import installed_device

    run_record.check_target(config.out)
    run = RunDir(config.out)
    with phase("reading the pair"):
        pair = open_pair(config.base, config.aligned, config.base_revision, config.aligned_revision, config.line)
        only_text(pair)
        device = installed_device()
        arguments = server_defaults(pair, device, {}) | dict(config.arguments)
        fingerprints = {name: remembered_fingerprint(parent, name) for name, parent in pair.opened.items()}
        sweep = record.sweep_record(pair, fingerprints, device, arguments)
        record.check(run, sweep, config)
    for warning in pair.warnings:
        say(f"warning: {warning}")
    # The lock is the outer block, so that the server has ended before another driver may go on here.
    with ExitStack() as held, Children() as children:

        def hold() -> EachRecord | None:
            held.enter_context(run.lock())
            return record.check(run, sweep, config)  # another driver may have written since the first check

        # A new directory is made only when the server is up, so that a refusal by the server leaves nothing behind.
        locked = config.out.is_dir()
        before = hold() if locked else None
        left = _left(run, config)
        name = served_name(pair)
        server = None
        if left:
            with phase("starting the server"):
                names = [name, *(name_at(name, lam) for lam in config.lambdas)]
                server = Server.start(
                    children, _pair_flags(config, left[0]), server_flags(config.arguments), names, say
                )
            check_unchanged(pair.files)  # those that the server has are those of the fingerprints
        if not locked:
            try:
                before = hold()
            except InputError:
                if server is not None:
                    server.end()
                raise
            run.damaged.clear()  # another driver may have mended what was damaged before
            left = _left(run, config)
        run.sweep_temporaries()
        for line in put_aside(run):
            say(f"warning: damaged, and moved to {run.root / 'damaged'}: {line}")
        planned = record.write(run, sweep, config, before)
        History(run, command_line())
        if len(left) < len(config.lambdas):
            say(f"{len(config.lambdas) - len(left)} of {len(config.lambdas)} λs are measured already; {len(left)} left")
        if server is None:
            return EachResult(run, 0, ())
        evaluation = _Evaluation(run, config, sweep, planned, server, name, children, around, say)
        try:
            failed = tuple(lam for lam in left if not evaluation.at(lam))
        except (SystemExit, RunMismatchError):  # the server is not at fault, so nobody needs its log
            server.log.unlink(missing_ok=True)
            raise
        server.end()
        return EachResult(run, len(left) - len(failed), failed)


def _left(run: RunDir, config: EachConfig) -> list[str]:
    done = dict(run.measured_tables())
    return [lam for lam in config.lambdas if lam not in done]


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """This holds everything that is the same at every λ."""

    run: RunDir
    config: EachConfig
    sweep: SweepRecord
    planned: EachRecord
    server: Server
    name: str  # the server's name for the model at each λ
    children: Children
    around: Mapping[str, str]
    say: Callable[[str], None]

    def at(self, lam: str) -> bool:
        """Run the command at one λ and commit its results; tell whether that went well."""
        began = time.monotonic()
        try:
            with phase(f"λ = {lam}: the command runs"):
                measured = self._measure(_prepared(self.run, lam), lam)
        except _FailedError as error:
            self.say(f"λ = {lam}: {error.lines[0]}")
            for line in error.lines[1:]:
                self.say(f"    {line}")
            with suppress(OSError):  # this is a note for `status`, and a disk that is full is no matter to other λs
                commit_bytes(self.run.failure(lam), "".join(f"{line}\n" for line in error.lines).encode())
            return False
        record.commit(self.run, self.sweep, self.planned, lam, measured)
        metrics, tasks = counted(len(measured), "metric"), counted(len({one.task for one in measured}), "task")
        self.say(f"λ = {lam}: {metrics} of {tasks} in {duration(time.monotonic() - began)}")
        return True

    def _measure(self, out: Path, lam: str) -> list[Measured]:
        server, command = self.server, self.config.command
        self._hold_files(lam)
        before = server.move(lam)
        log = out.parent / _LOG
        told = environment(self.around, server.url, server.key, name_at(self.name, lam), lam, out)
        with open(log, "wb") as stream:
            try:
                process = self.children.start(command.words, told, stream, out)
            except OSError as error:
                raise _FailedError([f"the command cannot be started: {error}"]) from None
        status = _wait(process, server)
        self.children.end(process)  # processes that the command left running would ask the server at the next λ
        where = _position(server)
        self._hold_files(lam)
        if status:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise _FailedError([f"the command {how}; {log} ends with", *(last_lines(log, _LINES) or ["nothing"])])
        if (where.lam, where.moves) != (before.lam, before.moves):
            raise _FailedError([_moved(before, where)])
        if where.requests == before.requests:
            raise _FailedError([_UNASKED])
        try:
            measured = collect(out)
        except ResultsError as error:
            raise _FailedError([f"the command ended with status 0, and {error.title}", *error.problems]) from None
        missing, alone = compare_with(measured, record.metrics_of(self.run))
        if missing:
            raise _FailedError(["the command ended with status 0, and left out what other λs have", *missing])
        for name in alone:
            self.say(f"warning: λ = {lam} has {name}, which the λs measured before it lack")
        return measured

    def _hold_files(self, lam: str) -> None:
        if changed := self.config.command.changed():
            raise RunMismatchError(
                f"files of the command changed meanwhile, so nothing is kept of λ = {lam} and no further λ is measured: put "
                f"them back and give the same command again, or give another --out",
                changed,
            )


def _wait(process: "subprocess.Popen[bytes]", server: Server) -> int:
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            server.check()


def _position(server: Server) -> Position:
    try:
        return server.position()
    except OSError as error:
        raise server.failure(f"does not say where it is ({error})") from None


def _moved(before: Position, where: Position) -> str:
    what = f"to λ = {where.lam}" if where.lam != before.lam else "away and back"
    return f"the server was moved {what} while the command ran, so its results are refused"


def _prepared(run: RunDir, lam: str) -> Path:
    """Return an empty directory for the command at a λ; what was there before is moved aside.

    Each attempt has a directory of its own name, so that nothing that outlived the last one writes into it.
    """
    folder = run.command_folder(lam)
    aside = run.root / "aside"
    assert isinstance(folder, Path)
    assert isinstance(aside, Path)
    last = max((_number(path, f"{folder.name}.") for path in aside.glob("*")), default=0)
    if folder.exists():
        here = max((_number(path, f"{_OUT}-") for path in folder.iterdir()), default=0)
        last = max(here, last + 1)
        aside.mkdir(exist_ok=True)
        folder.rename(aside / f"{folder.name}.{last}")
    out = folder / f"{_OUT}-{last + 1}"
    out.mkdir(parents=True)
    return out


def _number(path: Path, prefix: str) -> int:
    number = path.name.removeprefix(prefix)
    return int(number) if number != path.name and number.isdecimal() else 0


def _pair_flags(config: EachConfig, lam: str) -> list[str]:
    """Return the flags of `lambdasweep serve` that say which pair, which line and which λ."""

    def written(values: Mapping[str, str | None]) -> str | None:
        return ",".join(f"{name}={value}" if name else value for name, value in values.items() if value) or None

    flags = {
        "--base": config.base,
        "--aligned": written(config.aligned),
        "--base-revision": config.base_revision,
        "--aligned-revision": written(config.aligned_revision),
        "--lam": lam,
        "--method": config.line.method,
        "--lam-map": config.line.lam_map or None,
        "--vocab": config.line.vocab,
        "--parents": config.parents,
    }
    return [word for flag, value in flags.items() if value is not None for word in (flag, value)]
