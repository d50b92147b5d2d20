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
    if not task.is_sampled:
        return f"{task.format}, {task.shots} shots"
    return f"{task.samples} samples of at most {task.max_tokens} tokens, temperature {task.temperature:g}"


def quantity(number: float) -> str:
    """Write a count so that it can be read at a glance, like 950, 12.3 k or 4.56 M."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= scale:
            return f"{number / (1e3 if letter == 'k' else scale):.3g} {letter}"
    return f"{number:.0f}"
