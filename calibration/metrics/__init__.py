"""This folder computes metrics from scores, each with its value in every resample."""
