"""This makes receipts of units."""

from typing import Any

from contract.units import Receipt, Unit


def receipt(of: Unit, **values: Any) -> Receipt:
    usual = {
        "requests": 100,
        "quarantined": 0,
        "tokens_scheduled": 750,
        "tokens_cached": 250,
        "switch_seconds": 1.0,
        "score_seconds": 34.0,
        "commit_seconds": 1.0,
        "replica": "replica-0",
        "host": "node",
        "hardware": "H100",
        "route": "resident",
        "weight_digests": ("a",),
    }
    return Receipt(*of.key, **(usual | values))
