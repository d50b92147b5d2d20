"""Which tier a rank's parents go to: pure arithmetic over measured memory. Known without importing torch.

What the tiers are is told in `serve.switch.held_parents`. The fastest that fits is taken; on the CPU that is always mmap.
"""

from dataclasses import dataclass

from contract.errors import InputError

TIERS = ("device", "pinned", "mmap")
RELOAD = "reload"  # not a tier: every switch goes through vLLM's own loader
CHOICES = ("auto", *TIERS, RELOAD)

# Of the GPU, what is left at least for the KV cache when it was given no size, and for what a step makes.
_KV_SHARE, _STEP_SHARE, _STEP_BYTES = 0.10, 0.06, 4 << 30
# Of the host's memory, what page-locked parents may take: the rest is for the page cache they are read through, and others.
_PINNED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Room:
    """The memory one rank finds, in bytes."""

    host_total: int
    host_available: int
    ranks: int  # of all replicas on the node
    device_total: int = 0  # 0: the engine runs on the CPU
    device_free: int = 0  # with the live parameters already there
    utilization: float = 1.0  # of device_total, what the engine may take
    kv_cache_bytes: int | None = None  # None: whatever is left
    request_bytes: int = 0  # of keys and values that the longest request takes
    step_bytes: int = 0  # what a step makes, at most

    @property
    def kept_for_cache(self) -> int:
        """Return what keys and values have of the device, at least."""
        if self.kv_cache_bytes is not None:
            return self.kv_cache_bytes
        return max(round(_KV_SHARE * self.device_total), self.request_bytes)

    @property
    def kept_for_steps(self) -> int:
        """Return what steps have of the device."""
        return max(_STEP_BYTES, round(_STEP_SHARE * self.device_total), self.step_bytes)

    @property
    def kept_unused(self) -> int:
        """Return what vLLM leaves of the device, for CUDA, NCCL and what allocation loses."""
        return round((1 - self.utilization) * self.device_total)

    @property
    def device_reserve(self) -> int:
        """What parents must leave free on the device."""
        return self.kept_unused + self.kept_for_cache + self.kept_for_steps


def fits(tier: str, parents: int, room: Room) -> bool:
    """Tell whether a rank's `parents` bytes (of all of them) fit into a tier."""
    if tier == "device" and room.device_total:
        return parents + room.device_reserve <= room.device_free
    if tier in ("device", "pinned"):
        # Ranks of a node measure one after another while others already take their share, so what is available now says
        # enough about this rank only; all of them are held against the node's total.
        return parents * room.ranks <= _PINNED_SHARE * room.host_total and parents <= room.host_available
    return True


def choose(asked: str, parents: int, room: Room) -> str:
    """Return the tier for a rank's parents.

    Args:
        asked: auto, or a tier.
        parents: bytes of this rank's share of all parents.
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
