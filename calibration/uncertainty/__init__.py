"""How sure a number is: resamples, intervals, and tests of many differences at once."""
