"""Scores → metrics, each with its value in every resample."""
