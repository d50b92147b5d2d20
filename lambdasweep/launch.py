"""What is done before engines are started, for a sweep and for a batch alike."""

import errno
import os
import shutil
from pathlib import Path

from contract.errors import InputError, join
from lambdasweep.prepare import Prepared

_SPARE_BYTES = 64 << 20


def fingerprint_pair(prepared: Prepared) -> dict[str, str]:
    """Return content hashes of all parents, and refuse NaN and infinity in any; reads weights that are not known yet."""
    from merge.fingerprints import remembered_fingerprint

    fingerprints, failures = {}, []
    for role, parent in prepared.pair.parents.items():
        try:
            fingerprints[role] = remembered_fingerprint(parent, role)
        except InputError as error:
            failures.append(error)
    if failures:
        raise join(failures)
    return fingerprints


def before_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported: a cluster of this machine alone listens on loopback only."""
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def check_disk(out: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        InputError: too little space, or `out` cannot be written to.
    """
    there = out
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed + _SPARE_BYTES:
        raise InputError(
            f"no disk space: the tables take about {needed / 1e6:.0f} MB and {out} has {free / 1e6:.0f} MB free; "
            "make room or give another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "")
        raise InputError(f"{out} cannot be made ({error.strerror} {reason}): give another --out") from None
