"""How the start-up check compares the numbers of two routes."""

import numpy as np

from serve.engine import same_bits


def test_same_bits_tells_signs_and_takes_nan_for_nan() -> None:
    one = np.array([-1.5, np.nan, -np.inf])
    negative = np.copysign(one, [-1, -1, -1])  # of NaN too
    assert same_bits(one, negative)
    assert not same_bits(one, np.array([-1.5, -2.0, -np.inf]))
    assert not same_bits(one, np.array([np.nextafter(-1.5, 0), np.nan, -np.inf]))
    assert not same_bits(one, one[:2])
    assert not same_bits(np.array([0.0]), np.array([-0.0]))
