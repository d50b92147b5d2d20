"""A parent as it travels to other machines: where to find it there, and how to tell that it is the same one."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.errors import PairError
from contract.points import role
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.fingerprints import remembered_fingerprint, stamp
from merge.pair import Pair


@dataclass(frozen=True, slots=True)
class Parent:
    """One parent of a sweep."""

    role: str  # base, aligned or aligned.NAME
    source: str  # absolute path, on every node or on storage that they share; or a hub id
    revision: str | None  # commit of a hub id
    headers: str  # SHA-256 of names, dtypes, shapes and sizes of all tensors
    stamp: str  # of the files on the machine where it was first opened
    fingerprint: str  # of the content


def parent_of(checkpoint: Checkpoint, called: str, fingerprint: str) -> Parent:
    """Describe an opened checkpoint to other machines."""
    is_local = checkpoint.revision is None
    source = os.path.abspath(os.path.expanduser(checkpoint.source)) if is_local else checkpoint.source
    return Parent(called, source, checkpoint.revision, _headers(checkpoint), stamp(checkpoint), fingerprint)


def travelling(pair: Pair, fingerprints: Mapping[str, str]) -> tuple[Parent, dict[str, Parent]]:
    """Return base, and the aligned checkpoints by name.

    Args:
        pair: opened here.
        fingerprints: of the content, by role.
    """
    aligned = {
        name: parent_of(checkpoint, role(name), fingerprints[role(name)])
        for name, checkpoint in pair.aligned_by_name.items()
    }
    return parent_of(pair.base, "base", fingerprints["base"]), aligned


def open_here(parent: Parent) -> Path:
    """Return the directory of a parent on this machine.

    A hub id is downloaded where it is not yet; huggingface_hub locks each file, so that the processes of a machine do it
    once. Headers are compared always, and the content unless these are the very files that the sweep was started with: the
    weights are read once on each machine (`merge.fingerprints`).

    Raises:
        PairError: it cannot be opened here, or is another checkpoint than the sweep's.
    """
    checkpoint = open_checkpoint(parent.source, parent.role, parent.revision)
    problem = (
        f"the {parent.role} checkpoint {checkpoint.path} on this machine is not the one that the sweep was started with"
    )
    if _headers(checkpoint) != parent.headers:
        raise PairError(f"{problem}: tensors, shapes or dtypes differ; put the same files on every machine")
    if stamp(checkpoint) != parent.stamp and remembered_fingerprint(checkpoint, parent.role) != parent.fingerprint:
        raise PairError(f"{problem}: weights or config.json differ; put the same files on every machine")
    return checkpoint.path


def _headers(checkpoint: Checkpoint) -> str:
    rows = sorted([name, info.dtype, list(info.shape), info.nbytes] for name, info in checkpoint.tensors.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
