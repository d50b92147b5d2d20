"""This module finds, among the lines that an engine's processes wrote, those that say why it did not start."""

import re
from collections.abc import Sequence

_ERROR = re.compile(r"\w(Error|Exception)(: |$)")
_RANK = re.compile(r"^\[rank\d+\]:")  # PyTorch's word for whose line it is
_WARNING = re.compile(r"\bWARNING \d\d-\d\d ")  # vLLM tells of errors with which it goes on
# vLLM and PyTorch say these. vLLM says the second where memory came back while it measured.
_NO_MEMORY = re.compile(
    r"Free memory on device|Error in memory profiling|out of memory|OutOfMemoryError|"
    r"No available memory for the cache blocks"
)


def lacks_memory(reason: str) -> bool:
    """Tell whether an engine did not start because memory was not free."""
    return _NO_MEMORY.search(reason) is not None


def telling_lines(lines: Sequence[str], count: int) -> list[str]:
    """Return the last `count` lines, or one less and before them the last error that tells of memory.

    A rank of several logs why it ends, and the engine, which only knows that one ended, writes many lines after that.
    """
    last = list(lines[-count:])
    if any(map(lacks_memory, last)):
        return last
    telling = [line for line in lines[:-count] if _ERROR.search(line) and lacks_memory(line)]
    return [telling[-1], *last[1:]] if telling else last


def last_error(lines: Sequence[str]) -> str:
    """Return the last error that tells of memory, else the last error, else the last line; there is at least one.

    Of an error without words the line of code that raised it is returned, too.
    """
    errors = [place for place, line in enumerate(lines) if _ERROR.search(line.rstrip()) and not _WARNING.search(line)]
    told = next((place for place in reversed(errors) if lacks_memory(lines[place])), [len(lines) - 1, *errors][-1])
    found = _RANK.sub("", lines[told]).strip()
    if found.endswith(("Error", "Exception")):
        code = next((line for line in reversed(lines[:told]) if _RANK.sub("", line).strip(" ~^\n")), "")
        found = f"{found}: {_RANK.sub('', code).strip()}"
    return found
