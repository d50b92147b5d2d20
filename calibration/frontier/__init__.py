"""Metrics along λ → the frontier of accuracy against calibration error, λ*, and the answer in a sentence."""
