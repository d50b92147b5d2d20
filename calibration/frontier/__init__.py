"""This folder finds the frontier of accuracy against calibration error along λ, λ* on it, and the answer in a sentence."""
