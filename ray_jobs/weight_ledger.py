"""The ledgers know what replicas held and said: at a λ one model, and on one kind of hardware the same numbers."""

from collections.abc import Mapping

from contract.points import in_path
from contract.units import Receipt

SEVERAL = " + "  # between kinds of hardware
_WRITTEN = ("tokens", "generations")  # what an engine writes at its own λ; what it scores for another one is rescored


class WeightLedger:
    """Remembers the weight digests of the receipts that came in."""

    def __init__(self) -> None:
        """Begin with none; receipts of an earlier command are taken in like all others."""
        self._seen: dict[tuple[str, str, str], Receipt] = {}

    def conflict(self, receipt: Receipt) -> str | None:
        """Take in a receipt; return a message for the user if it contradicts an earlier one, otherwise None.

        Only receipts of the same λ, kind of hardware and route are compared: another kind of hardware may round
        differently, and another route sums up other tensors.
        """
        lam = receipt.engine_lam
        first = self._seen.setdefault((lam, receipt.hardware, receipt.route), receipt)
        if first.weight_digests == receipt.weight_digests:
            return None
        return (
            f"{first.replica} on {first.host} and {receipt.replica} on {receipt.host} computed different weights of the "
            f"same pair at λ = {lam}: a checkpoint file was changed during the sweep, or a machine's memory is "
            f"faulty. Delete what is under {', '.join(f'{kind}/*/lambda={in_path(lam)}' for kind in _WRITTEN)} and "
            f"rescored/task=*@{in_path(lam)}, and the same of other λs if files were changed, before you run the same "
            "command again"
        )


class ProbeLedger:
    """Remembers what the engine of each kind of hardware said of the probe prompt when it started.

    Args:
        known: who said what before, by the hardware that receipts tell. Where an engine was on several kinds they do not
            tell which rank was on which, so that these are left out.
    """

    def __init__(self, known: Mapping[str, tuple[str, str]] | None = None) -> None:
        self._seen = {hardware: told for hardware, told in (known or {}).items() if SEVERAL not in hardware}

    def conflict(self, replica: str, host: str, hardware: str, digest: str, is_eager: bool = False) -> str | None:
        """Take in that a replica started; return a message for the user if it says other numbers than an earlier one.

        Args:
            replica: its name.
            host: where its engine is.
            hardware: the kind of its ranks, or of each of its ranks in order.
            digest: of what it said.
            is_eager: whether its engine chooses nothing by timing.

        Other kinds of hardware may round differently. Weights are checked when an engine starts, and by their digests: what
        differs here is how it computes.
        """
        first, said = self._seen.setdefault(hardware, (f"{replica} on {host}", digest))
        if said == digest:
            return None
        timed = "" if is_eager else "kernels were chosen by timing, "
        instead = (
            ""
            if is_eager
            else ", or an engine that chooses nothing by timing (--engine enforce_eager=true, in a run of its own)"
        )
        return (
            f"{first} and {replica} on {host} give other logprobs of the same tokens, with the same weights on one kind of "
            f"hardware ({hardware}): their drivers or libraries differ, {timed}or a machine is faulty. What is committed "
            f"stays. Use machines that are alike{instead}, and run the same command again"
        )
