"""The resident route: θ(λ) straight from both parents into the live parameters, at the speed of memory.

On a GPU the live parameters have the layout that vLLM's loader writes; each block of them is one lerp and, where the parents
are in host memory, the next block is copied while this one is computed. On the CPU vLLM packs linear weights for its kernels
and throws the plain ones away; there each layer is put together in a scratch buffer and packed anew, one after another.
"""

from collections.abc import Callable, Mapping

import torch

from merge.digest import WeightDigest
from merge.interpolate import PLAIN, Rule, interpolate, mapped_tensors
from merge.pair import Pair
from serve.loading import Target, UntraceableError, trace
from serve.packing import Packer
from serve.parents import CPU_BLOCK, CUDA_BLOCK, HeldParents, MappedParents, Parents


class ResidentRoute:
    """Both parents of one rank, and the way from them to its live parameters.

    Args:
        pair: the parents.
        rules: `tensor_rules` of the pair.
        model: this rank's loaded model.
        device: the model's.
        choose_tier: given the bytes of this rank's share of both parents, returns device, pinned or mmap.

    Raises:
        UntraceableError: vLLM loads or keeps some weights in a way that this route does not know.
    """

    def __init__(
        self,
        pair: Pair,
        rules: Mapping[str, Rule],
        model: torch.nn.Module,
        device: torch.device,
        choose_tier: Callable[[int], str],
    ) -> None:
        base, aligned = dict(mapped_tensors(pair.base)), dict(mapped_tensors(pair.aligned))
        targets = trace(model, aligned, pair.aligned_rows)
        self._rules = rules
        self._whole = {t.path for t in targets if len({(rules[p.name], p.is_kept) for p in t.pieces}) == 1}
        self._device = device
        self._layers: dict[torch.nn.Module, list[Target]] = {}
        for target in targets:
            self._layers.setdefault(target.module, []).append(target)
        self._limit = CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK
        self._packer = Packer(model, self._layers) if device.type == "cpu" else None
        if self._packer is None and (packed := [target.path for target in targets if not target.is_plain]):
            raise UntraceableError(f"vLLM keeps {', '.join(packed[:5])} in a layout of its own")
        self.tier = choose_tier(2 * sum(target.layout.numel() * target.dtype.itemsize for target in targets))
        self._parents: Parents
        if self.tier == "mmap":
            self._parents = MappedParents(base, aligned)
        else:
            where = device if self.tier == "device" else torch.device("cpu")
            pin = self.tier == "pinned" and device.type == "cuda"
            self._parents = HeldParents(targets, base, aligned, where, pin)
        self._staging = _Staging(device, self._limit) if device.type == "cuda" and self.tier != "device" else None
        # Where the checkpoint's dtype is not the engine's, a block is rounded to the former before it is converted.
        self._rounded = torch.empty(self._limit, dtype=torch.uint8, device=device)

    def switch(self, lam: str) -> str:
        digest = WeightDigest(self._device)
        for module, targets in self._layers.items():
            if self._packer is None:
                for target in targets:
                    self._fill(target, target.live.data, lam, digest)
            else:
                for target, tensor in self._packer.unpacked(module, targets):
                    self._fill(target, tensor, lam, digest)
                self._packer.pack(module, targets)
        if self._packer is not None:
            self._packer.finish()
        return digest.hex()

    def _fill(self, target: Target, live: torch.Tensor, lam: str, digest: WeightDigest) -> None:
        """Write θ(λ) of one parameter into `live`, a tensor of the loader's layout."""
        for piece, place, base, aligned in self._parents.blocks(target, self._limit, target.path in self._whole):
            at, rule = ("1", PLAIN) if piece.is_kept else (lam, self._rules[piece.name])
            if self._staging is not None:
                base, aligned = self._staging.load(base, aligned)
            block = place.on(live)
            if live.dtype == target.dtype:
                made = interpolate(base, aligned, at, block, rule)
            else:
                rounded = self._rounded[: block.numel() * target.dtype.itemsize].view(target.dtype)
                made = interpolate(base, aligned, at, rounded.view(block.shape), rule)
                block.copy_(made)
            if self._staging is not None:
                self._staging.release()
            row_steps = [step // target.columns for step in place.stride[:-1]]
            digest.add(made, target.key, place.offset // target.columns, row_steps, target.words)


class _Staging:
    """Two pairs of buffers on the GPU: a side stream fills one while the other is computed with."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty((2, nbytes), dtype=torch.uint8, device=device) for _ in range(2)]
        self._filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._released = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def load(self, base: torch.Tensor, aligned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy a block of each parent; what is returned may be used on the current stream until `release`."""
        buffers, filled, released = self._buffers[self._turn], self._filled[self._turn], self._released[self._turn]
        nbytes = base.numel() * base.element_size()
        staged = [buffers[row, :nbytes].view(base.dtype).view(base.shape) for row in range(2)]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(released)
            for to, source in zip(staged, (base, aligned), strict=True):
                to.copy_(source, non_blocking=True)
            filled.record(self._stream)
        torch.cuda.current_stream().wait_event(filled)
        return staged[0], staged[1]

    def release(self) -> None:
        """The work queued so far is the last to use the block."""
        self._released[self._turn].record()
        self._turn = 1 - self._turn
