"""This module decides which tier a rank's parents go to, by arithmetic over measured memory. It needs no torch.

`serve.switch.held_parents` says what the tiers are. The fastest that fits is taken; on the CPU that is always mmap.
"""

from dataclasses import dataclass

from contract.errors import InputError

TIERS = ("device", "pinned", "mmap")
RELOAD = "reload"  # this is no tier: every switch goes through vLLM's own loader
CHOICES = ("auto", *TIERS, RELOAD)

# These parts of the GPU are left for the KV cache, where it was given no size, and for what a step makes.
_KV_SHARE, _STEP_SHARE, _STEP_BYTES = 0.10, 0.06, 4 << 30
# Page-locked parents may take this part of the host's memory. The rest is for the page cache, which they are read through.
_PINNED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that one rank finds, in bytes."""

    host_total: int
    host_available: int
    ranks: int  # the number of ranks of all replicas on the node
    device_total: int = 0  # 0: the engine runs on the CPU
    device_free: int = 0  # what is free once the live parameters are there
    utilization: float = 1.0  # the share of device_total that the engine may take
    kv_cache_bytes: int | None = None  # None: whatever is left
    request_bytes: int = 0  # what the keys and values of the longest request take
    step_bytes: int = 0  # the most that a step makes
    factor_bytes: int = 0  # factors of adapters, which every tier has on the device

    @property
    def kept_for_cache(self) -> int:
        """Return how much of the device keys and values have, at least."""
        if self.kv_cache_bytes is not None:
            return self.kv_cache_bytes
        return max(round(_KV_SHARE * self.device_total), self.request_bytes)

    @property
    def kept_for_steps(self) -> int:
        """Return how much of the device steps have."""
        return max(_STEP_BYTES, round(_STEP_SHARE * self.device_total), self.step_bytes)

    @property
    def kept_unused(self) -> int:
        """Return how much of the device vLLM leaves for CUDA, for NCCL, and for what allocation loses."""
        return round((1 - self.utilization) * self.device_total)

    @property
    def device_reserve(self) -> int:
        """Return how much of the device the tensors of parents must leave free."""
        return self.kept_unused + self.kept_for_cache + self.kept_for_steps + self.factor_bytes


def fits(tier: str, parents: int, room: Room) -> bool:
    """Tell whether a rank's `parents` bytes (of the tensors of all of them) fit into a tier."""
    if tier == "device" and room.device_total:
        return parents + room.device_reserve <= room.device_free
    if tier in ("device", "pinned"):
        # Ranks of a node measure one after another while others already take their share, so what is available now says
        # enough about this rank only; all of them are held against the node's total.
        return parents * room.ranks <= _PINNED_SHARE * room.host_total and parents <= room.host_available
    return True


def tier_for(asked: str, parents: int, room: Room) -> str:
    """Return the tier for a rank's parents.

    Args:
        asked: auto, or a tier.
        parents: bytes of this rank's share of the tensors of all parents.
        room: what was measured.

    Raises:
        InputError: the tier that was asked for does not fit.
    """
    if asked == "auto":
        return next(tier for tier in TIERS if fits(tier, parents, room)) if room.device_total else "mmap"
    if not fits(asked, parents, room):
        if asked == "device" and room.device_total:
            have = f"{room.device_free / 1e9:.1f} GB are free and {room.device_reserve / 1e9:.1f} GB must stay so"
        else:
            have = (
                f"the host has {room.host_total / 1e9:.1f} GB for {room.ranks} ranks, of which "
                f"{room.host_available / 1e9:.1f} GB are free"
            )
        raise InputError(
            f"--parents {asked}: the parents take {parents / 1e9:.1f} GB a rank, and {have}; use --parents auto"
        )
    return asked
