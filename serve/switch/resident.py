"""This module has the resident route, which brings θ(λ) straight from its parents into the live parameters.

On a GPU the live parameters have the layout that vLLM's loader writes; each block of them is one lerp, or a few sums, and,
where the parents are in host memory, the next block is copied while this one is computed. On the CPU vLLM packs linear
weights for its kernels and throws the plain ones away; there each layer is put together in a scratch buffer and packed anew,
one after another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from merge.computed import Computed, mapped_together
from merge.digest import WeightDigest
from merge.interpolate import PLAIN, Rule, along_one, needed, theta
from merge.pair import Pair
from serve.switch import fused
from serve.switch.held_parents import (
    CPU_BLOCK,
    CUDA_BLOCK,
    STAGED_BLOCK,
    Added,
    Block,
    HeldParents,
    MappedParents,
    Parents,
    Part,
    held_bytes,
    is_read_anew,
)
from serve.switch.loader_made import LoaderMade
from serve.switch.packing import Packer, is_as_loaded
from serve.switch.recorder import UntraceableError
from serve.switch.trace import Target, derived, trace

if TYPE_CHECKING:
    from serve.switch.reload import Reads


class ResidentRoute:
    """The route holds the parents of one rank, and knows the way from them to its live parameters.

    Args:
        pair: the parents.
        rules: `tensor_rules` of the pair.
        model: this rank's loaded model.
        device: the model's.
        choose_tier: given the bytes of this rank's share of all parents, of tensors and of factors of adapters, returns
            device, pinned or mmap.
        dtype: what the engine computes in; needed where modules make parameters out of others.
        names: what the model calls the checkpoint's tensors, where it is not as the checkpoint does.

    Raises:
        UntraceableError: vLLM loads or keeps some weights in a way that this route does not know.
    """

    def __init__(
        self,
        pair: Pair,
        rules: Mapping[str, Rule],
        model: torch.nn.Module,
        device: torch.device,
        choose_tier: Callable[[int, int], str],
        dtype: torch.dtype | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        parents = mapped_together([*pair.parents.values()])
        outlines = {name: _outline(tensor) for name, tensor in parents[-1].items()}
        targets = trace(model, outlines, pair.aligned_rows, names)
        copied = [target for target in targets if not target.computed_from]
        self._by_loader = LoaderMade(pair, rules, model, device, targets, names)
        self._derived = list(derived(model))
        self._dtype = dtype
        self._rules = rules
        self._whole = {t.path for t in copied if len({(rules[p.name], p.is_kept) for p in t.pieces}) == 1}
        self._device = device
        self._layers: dict[torch.nn.Module, list[Target]] = {}
        for target in targets:
            self._layers.setdefault(target.module, []).append(target)
        self._packer = Packer(model, self._layers) if device.type == "cpu" else None
        if self._packer is None and (packed := [target.path for target in targets if not is_as_loaded(target)]):
            raise UntraceableError(f"vLLM keeps {', '.join(packed[:5])} in a layout of its own")
        self.tier = choose_tier(*held_bytes(copied, parents))
        # On a CPU the factors of an adapter are maps of its file, wherever the parents are kept.
        is_mapped = self.tier == "mmap" or (
            device.type == "cpu" and any(one.is_adapter for one in pair.opened.values())
        )
        self.reads: Reads = "opened" if self._by_loader else "mapped" if is_mapped else "not at all"
        self._parents: Parents
        if self.tier == "mmap":
            self._parents = MappedParents(copied, parents, device)
        else:
            where = device if self.tier == "device" else torch.device("cpu")
            pin = self.tier == "pinned" and device.type == "cuda"
            self._parents = HeldParents(copied, parents, where, device, pin)
        stages = device.type == "cuda" and self.tier != "device"
        self._limit = CPU_BLOCK if device.type == "cpu" else STAGED_BLOCK if stages else CUDA_BLOCK
        self._staging = _Staging(device, self._limit, len(parents)) if stages else None
        self._fuses = device.type == "cuda" and fused.is_available()
        # What the blocks of a parameter are does not change. On a GPU, which is faster than Python, they are made once.
        self._blocks: dict[str, list[Block]] = {}
        self._keeps_blocks = device.type == "cuda" and not (self.tier == "mmap" and is_read_anew(copied, parents))
        # Where the checkpoint's dtype is not the engine's, a block is rounded to the former before it is converted.
        converts = any(target.layout.dtype != target.dtype for target in targets)
        self._rounded = torch.empty(self._limit if converts else 0, dtype=torch.uint8, device=device)

    def switch(self, lam: str) -> str:
        digest = WeightDigest(self._device)
        made = self._by_loader.make(lam, digest)

        def fill(target: Target, live: torch.Tensor) -> None:
            if target.computed_from:
                live.copy_(made[target.path])
            else:
                self._fill(target, live, lam, digest)

        for module, targets in self._layers.items():
            if self._packer is None:
                for target in targets:
                    fill(target, target.live.data)
            else:
                for target, tensor in self._packer.unpacked(module, targets):
                    fill(target, tensor)
                self._packer.pack(module, targets)
        if self._packer is not None:
            self._packer.finish()
        for module in self._derived:
            module.process_weights_after_loading(self._dtype)
        return digest.hex()

    def _fill(self, target: Target, live: torch.Tensor, lam: str, digest: WeightDigest) -> None:
        """Write θ(λ) of one parameter into `live`, a tensor of the loader's layout."""
        for piece, place, parts in self._blocks_of(target):
            at, rule = ("1", PLAIN) if piece.is_kept else (lam, self._rules[piece.name])
            parents = self._ready(parts, needed(at, rule))
            block = place.on(live)
            one = along_one(at, rule) if self._fuses and live.dtype == target.dtype else None
            if one is not None and place.shape[-1] == target.columns and block.is_contiguous():
                number, weighed = one
                first_row = place.offset // target.columns
                fused.write(parents[0], parents[number], weighed, block, digest, target.key, first_row, target.words)
                if self._staging is not None:
                    self._staging.release()
                continue
            if live.dtype == target.dtype:
                made = theta(parents, at, block, rule)
            else:
                rounded = self._rounded[: block.numel() * target.dtype.itemsize].view(target.dtype)
                made = theta(parents, at, rounded.view(block.shape), rule)
                block.copy_(made)
            if self._staging is not None:
                self._staging.release()
            row_steps = [step // target.columns for step in place.stride[:-1]]
            digest.add(made, target.key, place.offset // target.columns, row_steps, target.words)

    def _ready(self, parts: Sequence[Part], read: Sequence[int]) -> list[torch.Tensor]:
        """Return the blocks of all parents, on the device; those that are not to be read have any other in their place."""
        there = self._staging.load(parts, read) if self._staging is not None else parts
        base = there[0]
        assert isinstance(base, torch.Tensor)  # adapters are of aligned parents
        return [
            one if isinstance(one, torch.Tensor) else one.to(base) if number in read else base
            for number, one in enumerate(there)
        ]

    def _blocks_of(self, target: Target) -> Iterable[Block]:
        found = self._blocks.get(target.path)
        if found is not None:
            return found
        blocks = self._parents.blocks(target, self._limit, target.path in self._whole)
        return self._blocks.setdefault(target.path, list(blocks)) if self._keeps_blocks else blocks


def _outline(tensor: torch.Tensor | Computed) -> torch.Tensor:
    """Return a tensor of the same shape and dtype in a storage of its own, of which no element is to be read."""
    return tensor if isinstance(tensor, torch.Tensor) else torch.empty(tensor.shape, dtype=tensor.dtype)


class _Staging:
    """Two sets of buffers on the GPU, one for each parent: a side stream fills one while the other is computed with."""

    def __init__(self, device: torch.device, nbytes: int, parents: int) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty((parents, nbytes), dtype=torch.uint8, device=device) for _ in range(2)]
        self._filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._released = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def load(self, parents: Sequence[Part], places: Sequence[int]) -> list[Part]:
        """Copy a block of those parents that are at some places; what is returned of them may be used on the current stream
        until `release`, and the rest is not to be read. What an adapter adds is on the GPU already, and needs base."""
        buffers, filled, released = self._buffers[self._turn], self._filled[self._turn], self._released[self._turn]
        staged: list[Part] = []
        wanted = {0, *places} if any(isinstance(parents[place], Added) for place in places) else {*places}
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(released)
            for place, (buffer, parent) in enumerate(zip(buffers, parents, strict=True)):
                if isinstance(parent, Added):
                    staged.append(parent)
                    continue
                part = buffer[: parent.numel() * parent.element_size()].view(parent.dtype).view(parent.shape)
                if place in wanted:
                    part.copy_(parent, non_blocking=True)
                staged.append(part)
            filled.record(self._stream)
        torch.cuda.current_stream().wait_event(filled)
        return staged

    def release(self) -> None:
        """The work queued so far is the last to use the block."""
        self._released[self._turn].record()
        self._turn = 1 - self._turn
