"""Several choice tasks are put together as if they were one: the documents of all, each counted once.

A mean ECE over tasks would add up the noise of each, which pushes all of them upwards. The ECE of the pooled documents has
the noise of one large task; opposite errors of tasks cancel in it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from calibration.scores.documents import Documents
from calibration.scores.loader import Loader, TaskScores
from calibration.scores.per_document import CONFIDENCES, ChoiceScores, LeftOut
from calibration.uncertainty.resample import Resamples
from contract.records import Plan

ALL = "all tasks"  # the pool of all choice tasks; the space keeps it apart from the name of any task


def pools_of(plan: Plan, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return which of these choice tasks are pooled under which name; that of all tasks comes first.

    They are pooled by the groups of lm-eval that they belong to, and all together. A pool of one task is none, and where a
    group has all tasks, it is the pool of all.
    """
    found: dict[str, list[str]] = {}
    for task in tasks:
        for group in plan[task].groups:
            found.setdefault(group, []).append(task)
    pools = {name: tuple(members) for name, members in found.items() if len(members) > 1}
    whole = next((name for name, members in pools.items() if len(members) == len(tasks)), None)
    if whole is not None:
        return {whole: pools.pop(whole), **pools}
    return {ALL: tuple(tasks), **pools} if len(tasks) > 1 else pools


def pooled_resamples(several: Sequence[Resamples]) -> Resamples:
    """Return the splits and resamples of the documents of several tasks, one task after the other."""
    return Resamples(
        np.concatenate([one.in_report for one in several]), np.concatenate([one.counts for one in several])
    )


class PooledLoader:
    """Reads the λs of several choice tasks at once."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self._loaders = list(loaders.values())
        documents = [loader.documents for loader in self._loaders]
        nothing = np.empty(0, np.int64)
        sizes, gold = (np.concatenate([getattr(one, name) for one in documents]) for name in ("sizes", "gold"))
        self.documents = Documents(nothing, nothing, nothing, sizes, gold)
        ends = np.cumsum([len(one.sizes) for one in documents])
        self._first = [int(end) - len(one.sizes) for end, one in zip(ends, documents, strict=True)]

    def load(self, lam: str) -> TaskScores:
        """Read what is committed at a λ. There are no scores of tokens.

        Raises:
            LambdasweepError: a table is damaged; the message names the run, the task and λ.
        """
        several = [loader.load(lam, tokens=False).scores for loader in self._loaders]
        parts = [scores for scores in several if isinstance(scores, ChoiceScores)]
        width = max((scores.logits[CONFIDENCES[0]].shape[1] for scores in parts), default=1)
        logits = {
            confidence: np.concatenate([_padded(scores.logits[confidence], width) for scores in parts])
            for confidence in (parts[0].logits if parts else ())
            if all(confidence in scores.logits for scores in parts)
        }
        left_out = LeftOut(
            *(sum(getattr(one.left_out, name) for one in parts) for name in ("quarantined", "unfinished", "undefined"))
        )
        places = [scores.document + first for scores, first in zip(parts, self._first, strict=True)]
        sizes, gold = (np.concatenate([getattr(one, name) for one in parts]) for name in ("sizes", "gold"))
        return TaskScores(lam, ChoiceScores(np.concatenate(places), sizes, gold, logits, left_out), None)


def _padded(logits: np.ndarray, width: int) -> np.ndarray:
    missing = width - logits.shape[1]
    return np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf) if missing else logits
