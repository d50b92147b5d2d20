"""This module computes only the curve that λ* is chosen on, for a sweep that asks again and again while it runs."""

from collections.abc import Sequence

from calibration.catalogue import ERROR
from calibration.frontier.curve import Curve, collect_curve, thinned
from calibration.scores.loader import Loader
from calibration.scores.per_document import CONFIDENCES
from calibration.scores.pool import pools_of
from calibration.task_at_lambda import begun, pooled_metrics
from calibration.uncertainty.resample import RESAMPLES, SEED
from contract.points import order
from contract.records import Plan, SweepRecord
from contract.rundir import RunDir


def answer_curve(
    run: RunDir,
    tasks: Sequence[str],
    sweep: SweepRecord,
    plan: Plan,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Curve | None:
    """Return the curve that the first answer of a report is made of, from a pass over the tables for a few metrics only.

    Over several choice tasks it is that of all of them pooled, because a model is put to use at one λ. The numbers are the
    same as those of `analyse.analyse`.

    Args:
        run: the run.
        tasks: names of tasks of its plan; those without choices are passed over.
        sweep: the run's sweep.json.
        plan: the tasks of the run's plan.json.
        resamples: the number of resamples, as `analyse.analyse` takes it.
        seed: the seed of splits and resamples, as `analyse.analyse` takes it.

    Returns:
        The curve; None without a choice task, or without a λ that all choice tasks have finished.

    Raises:
        LambdasweepError: a table is missing or damaged; the message names the run, the task and λ.
    """
    parents = sweep.parents
    # The plan's order is that of `analyse`: sums of the same numbers in another order differ in the last bits.
    with_choices = [task for task in plan if task in tasks and has_choices(run, task, plan)]
    if not with_choices:
        return None
    name, members = next(iter(pools_of(plan, with_choices).items()), (with_choices[0], tuple(with_choices)))
    found = pooled_metrics(run, members, plan, parents, resamples, seed)
    kept = sorted((thinned(one, ERROR, CONFIDENCES[0], parents) for one in found), key=lambda one: order(one.lam))
    return collect_curve(name, kept, ERROR, CONFIDENCES[0], parents)


def has_choices(run: RunDir, task: str, plan: Plan) -> bool:
    """Tell whether anything of a task is committed, and its documents are choices."""
    record = plan[task]
    if record.is_sampled or record.is_answered or record.scored_as == "other" or not begun(run, task, record.lambdas):
        return False
    return not Loader(run, task).documents.is_continuation
