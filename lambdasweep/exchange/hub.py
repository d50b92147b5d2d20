"""An exported checkpoint goes to the model hub through huggingface_hub, and what arrived is held against what was sent.

huggingface_hub takes the token and the hub's address from where it always does (`hf auth login`, HF_TOKEN, HF_ENDPOINT).
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from contract.errors import InputError, LambdasweepError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HARMLESS = {".gitattributes"}  # the hub itself puts it into a new repository
_CHUNK = 1 << 24


def check_hub(repo: str, public: bool) -> None:
    """Refuse what could not be pushed, before an export takes its time.

    The hub ignores what is asked of a repository's visibility where the repository exists already, so a push that is meant
    to be private would be public there: this is refused.

    Raises:
        InputError: the name is no ORG/NAME, nobody is logged in, or the repository exists with files in it or with another
            visibility than the one asked for.
        LambdasweepError: the hub cannot be reached, or huggingface_hub is not installed.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"--push-to {repo} is no repository: give ORG/NAME")
    api = _api()
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    try:
        api.whoami()
    except LocalTokenNotFoundError:
        raise InputError("nobody is logged in to the model hub: run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise InputError("the model hub does not take the token: run `hf auth login`, or set HF_TOKEN") from None
        raise _unreachable(repo, error) from error
    except (
        Exception
    ) as error:  # those of the network are of the library that huggingface_hub talks with, whichever it is
        raise _unreachable(repo, error) from error
    try:
        there = api.model_info(repo)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise _unreachable(repo, error) from error
    problems = _visibility(repo, bool(there.private), public)
    if files := sorted({file.rfilename for file in there.siblings or ()} - _HARMLESS):
        problems.append(
            f"it holds {len(files)} files ({files[0]}, …): give another name, so that two models are not mixed"
        )
    if problems:
        raise InputError(f"{repo} exists on the hub and cannot be pushed to", problems)


def push(folder: Path, repo: str, public: bool, say: Callable[[str], None]) -> str:
    """Push a checkpoint as one commit and return the commit's address.

    A commit shows all of its files or none. Afterwards every file of the commit is compared with the one on this disk, by
    its size and its hash.

    Args:
        folder: the checkpoint.
        repo: ORG/NAME; it is made if it is not there.
        public: whether everybody may see it.
        say: a function that is called with one line of news at a time.

    Raises:
        LambdasweepError: the push failed, or what is on the hub is not what was pushed; the message says what to do.
    """
    api = _api()
    again = f"{folder} is whole: `hf upload {repo} {folder} .{'' if public else ' --private'}` pushes it"
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        say(f"pushing {folder} to {repo}, {'public' if public else 'private'}")
        commit = api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Add a model made with lambdasweep")
        problems = list(_differences(folder, api, repo, commit.oid))
        problems += _visibility(repo, bool(api.model_info(repo).private), public)
    except Exception as error:  # the hub's refusals, the network, the transfer of large files
        raise LambdasweepError(f"{repo} was not pushed ({_reason(error)}). {again}") from error
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise LambdasweepError(f"{repo} is not what was pushed; delete it there, and push again. {again}{lines}")
    return str(commit.commit_url)


def _differences(folder: Path, api: Any, repo: str, commit: str) -> Iterator[str]:
    from huggingface_hub.hf_api import RepoFile

    there = {
        entry.path: entry
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
        if isinstance(entry, RepoFile)
    }
    sent = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in sent.items():
        entry = there.pop(name, None)
        if entry is None:
            yield f"{name} is missing on the hub"
        elif entry.size != path.stat().st_size:
            yield f"{name} has {entry.size} bytes on the hub and {path.stat().st_size} here"
        elif (entry.lfs.sha256 if entry.lfs else entry.blob_id) != _digest(path, is_large=entry.lfs is not None):
            yield f"{name} has another content on the hub"
    yield from (f"{name} is on the hub and not in {folder}" for name in there if name not in _HARMLESS)


def _digest(path: Path, is_large: bool) -> str:
    """Return the hash that the hub knows a file by: SHA-256 of a large file, git's SHA-1 of any other."""
    digest = hashlib.sha256() if is_large else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _visibility(repo: str, private: bool, public: bool) -> list[str]:
    if private == (not public):
        return []
    if public:
        return ["it is private: leave --public out, or change it on the hub"]
    return ["everybody can see it: give --public where that is meant, or make it private on the hub"]


def _unreachable(repo: str, error: Exception) -> LambdasweepError:
    return LambdasweepError(f"{repo} cannot be pushed to: the hub does not answer as it should ({_reason(error)})")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("--push-to needs huggingface_hub: install lambdasweep[cpu] or lambdasweep[gpu]") from None
    return HfApi()
