"""lambdasweep: scores every model on the line between a language model before and after alignment."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambdasweep.notebook import Run

__all__ = ["open_run"]


def open_run(root: str | os.PathLike[str]) -> "Run":
    """Open a run directory for a notebook: its tables as Arrow (`lambdasweep.notebook.Run`).

    Raises:
        InputError: there is no run directory.
    """
    from lambdasweep.notebook import Run  # late: `import lambdasweep` costs nothing

    return Run(root)
