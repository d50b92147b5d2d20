"""This folder lays metrics out as tables for a terminal."""
