"""The command `lambdasweep`. What it imports takes a moment, in which a signal ends it as it does later on."""

import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130  # contract.errors.EXIT_INTERRUPTED, which is not imported yet


def main() -> NoReturn:
    """Run the command line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from lambdasweep.entry import main as command

    command()


def _end(*_: object) -> NoReturn:
    """End at once: nothing is begun yet that would have to be left in order."""
    sys.stderr.write("lambdasweep: interrupted\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
