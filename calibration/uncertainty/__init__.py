"""This folder says how sure a number is, by resamples, intervals, and tests of many differences at once."""
