"""The ledger knows which weights each λ was scored with: all replicas at a λ must have held the same model."""

from contract.points import in_path
from contract.units import Receipt


class WeightLedger:
    """Remembers the weight digests of the receipts that came in."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str], Receipt] = {}

    def conflict(self, receipt: Receipt) -> str | None:
        """Take in a receipt; return a message for the user if it contradicts an earlier one, otherwise None.

        Only receipts of the same λ, kind of hardware and route are compared: another kind of hardware may round
        differently, and another route sums up other tensors.
        """
        first = self._seen.setdefault((receipt.lam, receipt.hardware, receipt.route), receipt)
        if first.weight_digests == receipt.weight_digests:
            return None
        return (
            f"{first.replica} on {first.host} and {receipt.replica} on {receipt.host} computed different weights of the "
            f"same pair at λ = {receipt.lam}: a checkpoint file was changed during the sweep, or a machine's memory is "
            f"faulty. Delete the tables under tokens/*/lambda={in_path(receipt.lam)}, and those of other λs if files were "
            "changed, before you run the same command again"
        )
