"""Smooth ECE agrees with its authors' package."""

import numpy as np
import pytest

from calibration.metrics.binned import Layout
from calibration.metrics.smooth_ece import add_residuals, smooth_ece, smooth_residual
from calibration.uncertainty.resample import ones


def sums(confidence, correct, weights=None):
    layout = Layout(len(confidence))
    add_residuals(layout, np.asarray(confidence, np.float64), np.asarray(correct, np.bool_))
    weights = ones(len(confidence)) if weights is None else weights
    return layout.matrix.sums(weights), weights.sum(axis=0, dtype=np.float64)


def smooth_ece_at(total, n, sigma):
    return np.abs(smooth_residual(total, n, sigma)).sum(axis=0)


def world(seed, power, documents=3000):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(3, 1.2, documents)
    return confidence, rng.uniform(size=documents) < confidence**power


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_at_a_fixed_width_it_equals_relplot(sigma):
    from relplot import smECE_sigma  # it loads matplotlib

    # relplot looks at 200 points and leaves the part of the Gaussian beyond ±0.5 out.
    confidence, correct = world(1, 2.0)
    expected = smECE_sigma(confidence, correct.astype(float), sigma)
    assert smooth_ece_at(*sums(confidence, correct), np.array([sigma]))[0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("power", "about"), [(1.0, 0.02), (1.3, 0.06), (2.0, 0.14), (0.5, 0.12)])
def test_it_equals_relplot(power, about):
    from relplot import smECE

    confidence, correct = world(2, power)
    expected = smECE(confidence, correct.astype(float))
    found = smooth_ece(*sums(confidence, correct))[0]
    assert found == pytest.approx(expected, abs=2e-3)  # relplot's width is a multiple of 1/1024
    assert found == pytest.approx(about, abs=0.03)


def test_the_width_equals_the_error():
    confidence, correct = world(3, 1.5)
    total, n = sums(confidence, correct)
    found = smooth_ece(total, n)
    assert smooth_ece_at(total, n, found)[0] == pytest.approx(found[0], abs=2e-4)
    widths = np.geomspace(1e-3, 1, 30)
    errors = [smooth_ece_at(total, n, np.array([width]))[0] for width in widths]
    assert (np.diff(errors) <= 1e-9).all()  # the error falls with the width, so there is one such width


def test_errors_of_one_sign_are_their_mean_at_every_width():
    confidence, correct = np.linspace(0.3, 0.9, 40), np.zeros(40)
    for sigma in (0.005, 0.1, 1.0):
        assert smooth_ece_at(*sums(confidence, correct), np.array([sigma]))[0] == pytest.approx(0.6, abs=1e-9)
    assert smooth_ece(*sums(confidence, correct))[0] == pytest.approx(0.6, abs=1e-9)


@pytest.mark.parametrize(("confidence", "correct", "expected"), [(1.0, 1, 0.0), (1.0, 0, 1.0), (0.25, 1, 0.75)])
def test_one_document(confidence, correct, expected):
    assert smooth_ece(*sums([confidence], [correct]))[0] == pytest.approx(expected, abs=1e-9)


def test_a_weight_is_a_number_of_copies():
    confidence, correct = world(4, 1.4, 300)
    weights = np.random.default_rng(5).integers(0, 4, (300, 6)).astype(np.float32)
    found = smooth_ece(*sums(confidence, correct, weights))
    for column, value in zip(weights.T.astype(int), found, strict=True):
        expected = smooth_ece(*sums(np.repeat(confidence, column), np.repeat(correct, column)))[0]
        assert value == pytest.approx(expected, abs=1e-6)


def test_no_documents_have_no_error():
    assert np.isnan(smooth_ece(*sums([], []))).all()
