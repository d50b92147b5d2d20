"""This module describes the user's command: its words, the files among them, and what its environment tells it."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NO_PROXY = ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class Command:
    """A command that can be started in any directory."""

    words: tuple[str, ...]
    files: Mapping[str, str]  # the SHA-256 of each file among the words, by its path

    def __str__(self) -> str:
        return " ".join(self.words)

    def changed(self) -> list[str]:
        """Return the files that are no longer as they were when the command was settled."""
        found = []
        for name, known in self.files.items():
            try:
                same = _sha256(Path(name)) == known
            except OSError:
                same = False
            if not same:
                found.append(name)
        return found


def settle(words: Sequence[str], here: Path, problems: list[str]) -> Command:
    """Make a command of the words that stand behind `--`.

    The command runs in a directory of its own at each λ, so a word that names a file in `here` becomes the file's whole
    path. The word must have a / or an ending, so that the name of a task is no file by accident. Directories are left: `.`
    is the command's own.

    Args:
        words: the words.
        here: the directory that the user is in.
        problems: a list to which everything that is wrong is added.
    """
    if not words:
        problems.append("there is no command: give it after --, as in -- ./evaluate.sh")
        return Command((), {})
    settled = [_settled(word, here) for word in words]
    program = settled[0]
    if os.sep in program:
        program = str(here / program)  # a path that is no file is no command, either
        settled[0] = program
    if shutil.which(program) is None:
        what = "cannot be executed" if Path(program).is_file() else "is no command"
        problems.append(f"{words[0]} {what}: give a program, by its path or as the shell finds it")
        return Command(tuple(settled), {})
    files = {word: _sha256(Path(word)) for word, given in zip(settled, words, strict=True) if _is_file(given, here)}
    return Command(tuple(settled), dict(sorted(files.items())))


def environment(around: Mapping[str, str], url: str, key: str, model: str, lam: str, folder: Path) -> dict[str, str]:
    """Return the environment of the command at one λ.

    Args:
        around: the environment that it would have otherwise.
        url: the server's address, without a path.
        key: the server's key.
        model: the server's name for the model at this λ alone, so that a cache which goes by names keeps the answers of λs
            apart.
        lam: the canonical point.
        folder: the command's directory.
    """
    hosts = next((around[name] for name in _NO_PROXY if around.get(name)), "")
    local = ",".join(filter(None, [hosts, "127.0.0.1"]))  # a proxy does not reach a server on this machine
    return {
        **around,
        **dict.fromkeys(_NO_PROXY, local),
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": key,
        # Inspect's provider openai-api/lambdasweep/… looks for them under these names.
        "LAMBDASWEEP_BASE_URL": f"{url}/v1",
        "LAMBDASWEEP_API_KEY": key,
        "LAMBDASWEEP_LAM": lam,
        "LAMBDASWEEP_MODEL": model,
        "LAMBDASWEEP_OUT": str(folder),
        "INSPECT_LOG_DIR": str(folder / "logs"),
        "INSPECT_LOG_FORMAT": "json",
        # Otherwise Inspect's cache lies in the user's home, and goes by the prompt and the names of the model and the
        # address.
        "INSPECT_CACHE_DIR": str(folder / "inspect-cache"),
    }


def _is_file(word: str, here: Path) -> bool:
    return (os.sep in word or "." in word) and (here / word).is_file()


def _settled(word: str, here: Path) -> str:
    return str((here / word).absolute()) if _is_file(word, here) else word


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
