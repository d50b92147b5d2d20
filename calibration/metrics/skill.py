"""A skill score says how far a model has come from a reference to certainty: 0 is as good as the reference, 1 is best.

Source of the logarithmic score: M. S. Roulston, L. A. Smith, "Evaluating probabilistic forecasts using information theory",
Mon. Weather Rev. 130 (2002).
"""

import numpy as np

from calibration.arrays import Floats, Ints
from calibration.metrics.binned import Layout


def add_references(layout: Layout, sizes: Ints, gold: Ints) -> None:
    """Add the NLLs of two references that know nothing of the documents, for `skill_metrics`.

    uniform: all choices of a document are equally likely.
    prior: a choice is as likely as its place is the right one among those of these very documents that have as many choices.
        It is fitted on the documents that it is the reference of, so it is as good as a prior can be.

    Args:
        layout: where the sums are added.
        sizes: int64 [D], the number of choices of each document.
        gold: int64 [D], the place of the right one.
    """
    width = int(sizes.max(initial=1)) + 1
    place = sizes * width + gold  # one number for each place among so many choices
    layout.add("nll_uniform", np.log(sizes))
    layout.add("nll_prior", np.log(np.bincount(sizes, minlength=width)[sizes]) - np.log(np.bincount(place)[place]))


def skill_metrics(layout: Layout, sums: Floats, nll: Floats) -> dict[str, Floats]:
    """Return 1 − NLL / NLL of the reference [R] for both references, from sums [K, R] and the sum of NLLs [R] in nats.

    There is none where the reference is certain.
    """
    found = {}
    for name in ("uniform", "prior"):
        reference = layout.of(sums, f"nll_{name}")[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"nll_skill_{name}"] = np.where(reference > 1e-12, 1 - nll / reference, np.nan)
    return found
