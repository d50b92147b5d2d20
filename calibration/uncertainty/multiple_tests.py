"""Many differences are tested at once by studentised maxima over bootstrap resamples."""

import numpy as np

from calibration.arrays import Bools, Floats

_ROUNDING = 1e-9
"""What two studentised values may differ by and be equal. Accuracies are shares of a few documents, so that a resample is
often exactly as far off as the sample, and what rounding makes of that must not decide."""


def step_down(gain: Floats, resampled: Floats) -> Floats:
    """Return the p-value of each claim "this gain is above 0", adjusted for there being H claims.

    If every claim with p ≤ α is made, a false one is among them with probability at most α. This holds whatever the
    dependence between the gains, because the resamples carry it; hence many neighbouring λs cost little. The tests are
    one-sided, studentised and step-down.

    Args:
        gain: the gains [H].
        resampled: the same gains in R resamples [H, R].

    Returns:
        The p-values [H], in (0, 1]. A gain that does not vary is judged by its sign alone.

    Source: J. P. Romano, M. Wolf, "Stepwise multiple testing as formalized data snooping", Econometrica 73 (2005), with
    p-values as in their "Efficient computation of adjusted p-values for resampling-based stepdown multiple testing",
    Statistics & Probability Letters 113 (2016).
    """
    if len(gain) == 0:
        return np.empty(0)
    t, drawn = _studentised(gain, resampled)
    order = np.argsort(-t, kind="stable")
    # The k-th largest is compared with the maxima over itself and all smaller ones.
    highest = np.maximum.accumulate(drawn[order][::-1], axis=0)[::-1]
    exceeded = (highest >= t[order, None] - _ROUNDING).sum(axis=1)
    adjusted = np.maximum.accumulate((1 + exceeded) / (1 + resampled.shape[1]))
    p = np.empty(len(gain))
    p[order] = adjusted
    return p


def indistinguishable(difference: Floats, resampled: Floats, level: float = 0.95) -> Bools:
    """Return [H] which differences are within simultaneous two-sided confidence bands around 0.

    `difference` [H] holds the values and `resampled` [H, R] the same in R resamples. The source is that of `step_down`; here
    one step compares |t| with the `level` quantile of the largest |t| in a resample.
    """
    if len(difference) == 0:
        return np.empty(0, np.bool_)
    t, drawn = _studentised(difference, resampled)
    critical = np.quantile(np.abs(drawn).max(axis=0), level, method="higher")
    within: Bools = np.abs(t) <= critical + _ROUNDING
    return within


def _studentised(value: Floats, resampled: Floats) -> tuple[Floats, Floats]:
    """Return t [H] = value / standard error, and [H, R] the same for the deviations of the resamples from the value."""
    error = resampled.std(axis=1)
    varies = error > 1e-12  # a metric that is the same for two λs differs by rounding only
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(varies, value / error, np.where(np.abs(value) > 1e-12, np.sign(value) * np.inf, 0.0))
        drawn = np.where(varies[:, None], (resampled - value[:, None]) / error[:, None], 0.0)
    return t, drawn
