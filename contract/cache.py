"""A machine remembers what takes long to make, in folders that may be removed at any time."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder in which this machine remembers one kind of thing."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "lambdasweep" / name
