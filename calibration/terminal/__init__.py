"""Metrics → tables for a terminal."""
