"""This says where this tree is."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
