"""`lambdasweep status --watch` shows a live view of a run, on any machine that sees its directory."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from contract.errors import InputError
from contract.points import is_parent, order
from contract.rundir import RunDir
from lambdasweep.monitor import status
from lambdasweep.monitor.run_counts import RunCounts, TaskCount
from lambdasweep.monitor.wording import quantity

_SECONDS = 1.0  # the time between two looks on a terminal
_LINE_SECONDS = 5.0  # the time between two looks where there is no terminal
_READ_SECONDS = 0.3  # a look reads new receipts for so long
_LABEL, _CELL = 24, 6  # a task's name, and a λ, have at most so many columns


def watch(run: RunDir, console: Console) -> RunCounts:
    """Show the run until all its units are done and its driver has ended, or until the process is interrupted.

    Returns:
        What the run has then.

    Raises:
        InputError: `run` is no run directory, or that of a command of the user.
    """
    counts = RunCounts(run)
    if counts.each is not None:
        raise InputError(f"{run.root} is of `lambdasweep each`, and --watch shows sweeps: leave it out")
    if not console.is_terminal:
        _print_lines(counts, console)
        return counts
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not _ended(counts):
            live.update(Group(*render(counts, console.width, console.height)), refresh=True)
            time.sleep(_SECONDS)
            counts.refresh(_READ_SECONDS)
    return counts


def _print_lines(counts: RunCounts, console: Console) -> None:
    """Print a line whenever something has changed."""
    before: tuple[int, int, bool] | None = None
    while True:
        counts.refresh(_READ_SECONDS)
        now = counts.done, counts.spent.receipts, counts.driver_runs
        if now != before:
            before = now
            how = status.pace(counts) if counts.driver_runs else status.driver(counts)
            line = ", ".join(filter(None, [_units(counts), how, status.spent(counts)]))
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if _ended(counts):
            return
        time.sleep(_LINE_SECONDS)


def _ended(counts: RunCounts) -> bool:
    return counts.done >= counts.total and not counts.driver_runs


def _units(counts: RunCounts) -> str:
    return f"{counts.done}/{counts.total} units"


def render(counts: RunCounts, width: int, height: int) -> list[Text]:
    """Return the lines of the view; there are at most `height` lines, and none is wider than `width`."""
    head = [Text(str(counts.run.root), "bold"), _bar(counts, min(20, width // 4))]
    head += [Text(line) for line in (status.pace(counts), status.spent(counts)) if line]
    if quarantined := counts.spent.quarantined.total():
        head.append(Text(f"{quantity(quarantined)} requests quarantined", "red"))
    head.append(Text(status.driver(counts) or "no driver was seen here", "green" if counts.driver_runs else "yellow"))
    replicas = _replicas(counts, width, max(2, height // 6))
    news, space = [], []
    if height >= 20:
        news = [Text(line, "dim") for line in counts.driver.news[-2:]] if counts.driver else []
        space = [Text()]
    room = height - len(head) - len(replicas) - len(news) - 2 * len(space)
    lines = [*head, *space, *_heat_map(counts, width, max(4, room)), *space, *replicas, *news]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _bar(counts: RunCounts, width: int) -> Text:
    share = counts.done / counts.total if counts.total else 1.0
    filled = int(share * width)
    text = Text("█" * filled, "green").append("░" * (width - filled), "dim")
    return text.append(f"  {_units(counts)}  {_percent(share)}")


def _percent(share: float) -> str:
    return f"{int(share * 100)} %"  # rounding down shows 100 only at the end


def _heat_map(counts: RunCounts, width: int, height: int) -> list[Text]:
    """Return a table with a row for each task and columns of λs; a column holds several λs where there are too many."""
    lambdas = sorted({lam for task in counts.tasks.values() for lam in task.lambdas}, key=order)
    label = min(_LABEL, max(len(name) for name in counts.tasks), width // 3)
    room = max(1, width - label - 7)
    per_column = -(-len(lambdas) // room)
    columns = [lambdas[start : start + per_column] for start in range(0, len(lambdas), per_column)]
    cell = min(_CELL, room // len(columns))
    at = {lam for _, lam, _ in counts.in_work}
    here = "".join(("▼" if at & set(column) else " ").ljust(cell) for column in columns)
    lines = [
        Text(" " * (label + 1)).append(_axis(columns, cell), "dim"),
        Text("▼ now".ljust(label)[:label] + " ", "dim").append(here, "cyan"),
    ]
    shown, folded = _rows(counts, height - len(lines))
    for name in shown:
        lines.append(_row(name, [counts.tasks[name]], columns, cell, label))
    if folded:
        lines.append(_row(f"{len(folded)} more", [counts.tasks[name] for name in folded], columns, cell, label))
    return lines


def _rows(counts: RunCounts, room: int) -> tuple[list[str], list[str]]:
    """Return the tasks with a row of their own, and those that share one; tasks in work, then unfinished ones, get a row."""
    names = list(counts.tasks)
    if len(names) <= room:
        return names, []
    at = {task for task, _, _ in counts.in_work}

    def rank(name: str) -> tuple[bool, bool]:
        task = counts.tasks[name]
        return name not in at, not 0 < task.done.total() < task.total

    chosen = set(sorted(names, key=rank)[: max(0, room - 1)])
    return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def _row(name: str, tasks: Sequence[TaskCount], columns: list[list[str]], cell: int, label: int) -> Text:
    name = name if len(name) <= label else name[: label - 1] + "…"
    text = Text(name.ljust(label) + " ")
    for column in columns:
        planned = sum(task.shards for task in tasks for lam in column if lam in task.lambdas)
        done = sum(task.done[lam] for task in tasks for lam in column)
        glyph, style = _heat(done, planned)
        text.append(glyph * max(1, cell - 1) + " " * (cell > 1), style)
    total, done = sum(task.total for task in tasks), sum(task.done.total() for task in tasks)
    return text.append(f" {_percent(done / total if total else 1.0):>5}")


def _heat(done: int, planned: int) -> tuple[str, str]:
    if not planned:
        return " ", ""
    if done >= planned:
        return "█", "green"
    if not done:
        return "·", "dim"
    return "░▒▓"[3 * done // planned], "yellow"


def _axis(columns: list[list[str]], cell: int) -> str:
    """Return the labels of λs over their columns; ends and parents have one, and others where there is room."""
    line = [" "] * (len(columns) * cell + max(len(lam) for column in columns for lam in column))
    first = [0, len(columns) - 1, *(n for n, column in enumerate(columns) if any(map(is_parent, column)))]
    step = max(1, len(columns) // 8)
    for number in [*first, *range(0, len(columns), step)]:
        lam = next((lam for lam in columns[number] if is_parent(lam)), columns[number][0])
        start, end = number * cell, number * cell + len(lam)
        if all(character == " " for character in line[max(0, start - 1) : end + 1]):
            line[start:end] = lam
    return "".join(line).rstrip()


def _replicas(counts: RunCounts, width: int, height: int) -> list[Text]:
    """Return what each replica does, in columns, and the number of the others where not all have room."""
    if not counts.driver_runs or counts.driver is None:
        return []
    texts = [f"{name}  {status.doing(one)}" for name, one in status.replicas(counts.driver)]
    if not texts:
        return []
    column = max(map(len, texts)) + 3
    per_line = max(1, width // column)
    fit = per_line * height
    lines = []
    if len(texts) > fit:
        texts, rest = texts[: fit - per_line], len(texts) - (fit - per_line)
        lines.append(Text(f"and {rest} more replicas", "dim"))
    rows = [texts[start : start + per_line] for start in range(0, len(texts), per_line)]
    return [*(Text("".join(text.ljust(column) for text in row).rstrip()) for row in rows), *lines]
