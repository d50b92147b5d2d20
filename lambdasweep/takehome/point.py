"""The point of a pair to take home is given by flags, or by a run and its λ*."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contract.errors import InputError, RunMismatchError
from contract.points import ONLY, parse_point, role
from contract.records import LineRecord, SweepRecord, read_sweep
from contract.rundir import RunDir
from contract.schemas import METRICS, point_of
from lambdasweep.aligned_flags import parse_aligned, parse_revisions

if TYPE_CHECKING:
    from calibration.analyse import Analysis
    from merge.line import Line
    from merge.pair import Pair


@dataclass(frozen=True, slots=True)
class PointSource:
    """Says where the pair is and which point of it is meant; `run` is the run that both were taken from, if any."""

    base: str
    aligned: Mapping[str, str]  # the directory or hub id of each aligned checkpoint, by name; an only one's is ""
    base_revision: str | None
    aligned_revision: Mapping[str, str | None]  # the revision of each aligned hub id, by name
    line: "Line"
    lam: str
    run: "MeasuredPoint | None" = None


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """Holds what a run knows about a point."""

    root: str
    record: SweepRecord
    chosen_by: str  # a few words that say how λ was chosen
    metrics: tuple[dict[str, Any], ...]  # the rows of schemas.METRICS at this point, for all tasks
    answer: str = ""  # what the run's answer says of it, where it is λ*
    beside: tuple[str, ...] = ()  # the lines of a Markdown table of λ*, the parents and the rivals, where there are any


def from_flags(
    run: str | None,
    base: str | None,
    aligned: str | None,
    base_revision: str | None,
    aligned_revision: str | None,
    lam: str | None,
    method: str | None = None,
    lam_map: str | None = None,
    vocab: str | None = None,
) -> PointSource:
    """Settle the point that a command line asks for.

    Raises:
        InputError: neither a run nor both parents are given, or both a run and parents are; there is no λ and no run to take
            it from; or the run has no λ*.
    """
    from merge.line import Line, check_line

    if run is not None:
        if any(value is not None for value in (base, aligned, base_revision, aligned_revision, method, lam_map, vocab)):
            raise InputError("a run knows its pair and its line: give RUN, or --base and --aligned")
        return _from_run(RunDir(run), lam)
    problems = [f"{flag} is missing" for flag, value in (("--base", base), ("--aligned", aligned)) if value is None]
    problems += ["--lam is missing"] if lam is None else []
    line = Line(method or "linear", lam_map or "", vocab or "strict")
    problems += check_line(line)
    if problems or base is None or aligned is None or lam is None:
        raise InputError("there is no point to take: give RUN, or --base, --aligned and --lam", problems)
    by_name = parse_aligned(aligned)
    revisions = parse_revisions(aligned_revision, by_name) if aligned_revision is not None else {ONLY: None}
    return PointSource(base, by_name, base_revision, revisions, line, parse_point(lam, by_name))


def _from_run(run: RunDir, lam: str | None) -> PointSource:
    from merge.line import Line

    record = read_sweep(run)
    recorded = record.line or LineRecord()
    line = Line(recorded.method, recorded.lam_map, recorded.vocab)
    answer = ""
    rows_beside: tuple[str, ...] = ()
    base, aligned = record.pair["base"], {name: record.pair[role(name)] for name in record.names}
    if lam is None:
        from calibration.analyse import analyse
        from calibration.frontier.frontier import reported

        # The tables are read anew, because what `report` wrote may be older; its margin holds.
        margin, confidence = reported(run)
        analysis = analyse(run, confidence=confidence, margin=margin, sweep=record)
        metrics = analysis.metrics
        lam, chosen_by, answer, rows_beside = _best(run, analysis)
    else:
        from lambdasweep.notebook import Run

        lam = parse_point(lam, aligned)
        metrics = Run(str(run.root)).metrics() if run.metrics_parquet.is_file() else METRICS.empty_table()
        chosen_by = "asked for"
    rows = [row for row in metrics.to_pylist() if point_of(row) == lam]
    measured = MeasuredPoint(str(run.root), record, chosen_by, tuple(rows), answer, rows_beside)
    sources = {name: one.source for name, one in aligned.items()}
    revisions = {name: one.revision for name, one in aligned.items()}
    return PointSource(base.source, sources, base.revision, revisions, line, lam, measured)


def _best(run: RunDir, analysis: "Analysis") -> tuple[str, str, str, tuple[str, ...]]:
    """Return λ*, the words that say of which tasks it is, the answer, and the table of what stands beside λ*."""
    from calibration.frontier.beside import markdown

    if analysis.damaged:  # λ* of what is left might be another one
        raise InputError(
            f"{run.root} has damaged tables, so there is no λ* now: run the same sweep again, or give --lam",
            analysis.damaged,
        )
    found = analysis.found
    best = found.first
    # Written answers are in no pool: λ* is that of choices where there are any, else that of the only task.
    of_choices = [one for one in found.tasks if not analysis.plan[one.task].is_answered]
    if len(of_choices) > 1 and best is not None and len(analysis.pools.get(best.task, ())) < len(of_choices):
        raise InputError(f"{run.root}: no λ has results of all tasks, so there is no λ* of all of them: give --lam")
    if not of_choices and len(found.tasks) > 1:
        names = ", ".join(one.task for one in found.tasks)
        raise InputError(
            f"{run.root}: each of {names} has a λ* of its own, because written answers are in no pool: give --lam"
        )
    if best is None:
        raise InputError(f"{run.root} has no results of a task with choices, so there is no λ*: give --lam")
    whose = f"{len(of_choices)} tasks pooled" if best.is_pooled else f"task {best.task}"
    answer = f"{best.answer} {best.claim.text}" if best.claim else best.answer
    return best.chosen.lam, f"λ* of {whose}", answer, tuple(markdown(best)) if best.rivals else ()


def fingerprints_of(pair: "Pair", run: MeasuredPoint | None) -> dict[str, str]:
    """Return the fingerprint of each parent by its role; weights that this machine has not read before are read.

    Raises:
        PairError: a parent holds NaN or infinity.
        RunMismatchError: a parent is another one than the run's, or has another tokenizer.
    """
    from merge.fingerprints import remembered_fingerprint
    from merge.vocabulary import tokenizer_digest

    found = {name: remembered_fingerprint(parent, name) for name, parent in pair.opened.items()}
    if run is not None:
        changed = []
        for name, parent in pair.parents.items():
            recorded = run.record.pair[name]
            for what, before, now in (
                ("", recorded.fingerprint, found[name]),
                ("the tokenizer of ", recorded.tokenizer_sha256, tokenizer_digest(parent.path)),
            ):
                if before is not None and now != before:
                    changed.append(
                        f"{what}{name} {recorded.source} was {before[:12]}… and is {(now or 'none')[:12]}… now"
                    )
        if changed:
            raise RunMismatchError(
                f"{run.root} was made with another pair; restore what it was made with, or sweep again", changed
            )
    return found
