"""This module names the kinds of arrays that calibration computes with, and the number of bins for confidences."""

import numpy as np
from numpy.typing import NDArray

BINS = 15
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
