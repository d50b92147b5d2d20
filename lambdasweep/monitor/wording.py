"""These functions write times, counts and the settings of a task as a person would."""

from contract.records import TaskRecord


def duration(seconds: float) -> str:
    """Write seconds as a person would, like 45 s, 3 min 20 s or 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def how(task: TaskRecord) -> str:
    """Say in a few words how a task of the plan is scored or sampled."""
    if not (task.is_sampled or task.is_answered):
        return as_scored(task.format, task.scored_as, task.shots)
    said = f"of at most {task.max_tokens} tokens, temperature {task.temperature:g}"
    if task.is_sampled:
        return f"{task.samples} samples {said}"
    return f"{task.format}, {counted(task.shots or 0, 'shot')}, {counted(task.samples or 1, 'answer')} {said}"


def as_scored(form: str | None, scored_as: str | None, shots: int | None) -> str:
    """Say how the texts of a task are scored: rows with a continuation have no format of choices."""
    return (
        f"{'continuations' if scored_as == 'continuation' and form == 'cloze' else form}, {counted(shots or 0, 'shot')}"
    )


def counted(number: int, what: str) -> str:
    """Write a number of things, like 1 unit or 2 units."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """Write bytes as a person would, like 720 kB, 1.23 MB or 16.20 GB."""
    for scale, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {name}"
    return f"{nbytes / 1e3:.0f} kB"


def cost(hours: float, of: str) -> str:
    """Write core-hours or GPU-hours; a few of them in seconds."""
    return f"{hours:.3g} {of}-hours" if hours >= 0.01 else f"{hours * 3600:.3g} {of}-seconds"


def quantity(number: float) -> str:
    """Write a count so that it can be read at a glance, like 950, 12.3 k or 4.56 M."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= scale:
            return f"{number / (1e3 if letter == 'k' else scale):.3g} {letter}"
    return f"{number:.0f}"
