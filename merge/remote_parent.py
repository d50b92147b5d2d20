"""A parent is described to other machines: where they find it, and how they tell that it is the same one."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from contract.errors import PairError
from contract.points import role
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.fingerprints import remembered_fingerprint, stamp
from merge.pair import Pair


@dataclass(frozen=True, slots=True)
class RemoteParent:
    """Describes one parent of a sweep to other machines."""

    role: str  # base, aligned or aligned.NAME
    source: str  # an absolute path that is on every node or on storage that they share; or a hub id
    revision: str | None  # the commit of a hub id; None for a path
    headers: str  # the SHA-256 of the names, dtypes, shapes and sizes of all tensors
    stamp: str  # the stamp of the weight files on the machine where they were first opened
    fingerprint: str  # the fingerprint of weights and config


def describe_parent(checkpoint: Checkpoint, called: str, fingerprint: str) -> RemoteParent:
    """Describe an opened checkpoint to other machines."""
    is_local = checkpoint.revision is None
    source = os.path.abspath(os.path.expanduser(checkpoint.source)) if is_local else checkpoint.source
    return RemoteParent(called, source, checkpoint.revision, _headers(checkpoint), stamp(checkpoint), fingerprint)


def travelling(pair: Pair, fingerprints: Mapping[str, str]) -> tuple[RemoteParent, dict[str, RemoteParent]]:
    """Describe all parents to other machines: return base, and the aligned checkpoints by name.

    Args:
        pair: the pair as it was opened on this machine.
        fingerprints: the content hash of each parent, by its role.
    """
    aligned = {
        name: describe_parent(pair.opened[role(name)], role(name), fingerprints[role(name)])
        for name in pair.aligned_by_name
    }
    return describe_parent(pair.opened["base"], "base", fingerprints["base"]), aligned


def open_here(parent: RemoteParent) -> Checkpoint:
    """Open a parent on this machine.

    A hub id is downloaded if this machine does not have it yet; huggingface_hub locks each file, so that the processes of a
    machine do it once. The headers are always compared. The content is compared too unless these are the very files that the
    sweep was started with, for which the weights are read once on each machine (`merge.fingerprints`).

    Raises:
        PairError: the parent cannot be opened here, or is another checkpoint than the sweep's.
    """
    checkpoint = open_checkpoint(parent.source, parent.role, parent.revision)
    problem = (
        f"the {parent.role} checkpoint {checkpoint.path} on this machine is not the one that the sweep was started with"
    )
    if _headers(checkpoint) != parent.headers:
        raise PairError(f"{problem}: tensors, shapes or dtypes differ; put the same files on every machine")
    if stamp(checkpoint) != parent.stamp and remembered_fingerprint(checkpoint, parent.role) != parent.fingerprint:
        raise PairError(f"{problem}: weights or config.json differ; put the same files on every machine")
    return checkpoint


def _headers(checkpoint: Checkpoint) -> str:
    rows = sorted([name, info.dtype, list(info.shape), info.nbytes] for name, info in checkpoint.tensors.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
