"""This module fills weights that vLLM's CPU backend keeps packed: layer by layer they are laid out, filled and packed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from contract.errors import EngineError
from contract.freed_memory import keep_freed_memory
from serve.switch.experts import kernel_of
from serve.switch.recorder import UntraceableError
from serve.switch.reload import tied_modules
from serve.switch.trace import Target


class Packer:
    """Rebuilds the layers of one rank's model on the CPU.

    Beyond the model it needs the memory of one scratch buffer, as large as the largest layer: a layer's old packed copy
    is freed before the new one is made.

    Args:
        model: this rank's loaded model.
        layers: its modules with the parameters that a checkpoint fills.

    Raises:
        UntraceableError: a parameter was replaced by something that cannot be made again.
    """

    def __init__(self, model: torch.nn.Module, layers: Mapping[torch.nn.Module, Sequence[Target]]) -> None:
        self._tied = tied_modules(model)
        everything = [target for targets in layers.values() for target in targets]
        self._kept: dict[str, Any] = {target.path: target.live for target in everything}
        # These parameters are not as the loader writes them. Mostly they are empty, because the kernel's own copy took
        # their place.
        self._packed = {target.path for target in everything if not is_as_loaded(target)}
        unknown = [t.path for t in everything if t.path in self._packed and not _is_processed(t.module)]
        if unknown:
            raise UntraceableError(f"vLLM keeps {', '.join(unknown[:5])} in a layout of its own")
        size = max((self._scratch_bytes(targets) for targets in layers.values()), default=0)
        self._scratch = torch.zeros(size, dtype=torch.uint8)
        keep_freed_memory(largest=1 << 30)

    def unpacked(self, module: torch.nn.Module, targets: Sequence[Target]) -> Iterator[tuple[Target, torch.Tensor]]:
        """Yield the layer's parameters, each with the tensor in the loader's layout that is to be filled."""
        start = 0
        for target in targets:
            if target.path not in self._packed:
                yield target, target.live.data
                continue
            nbytes = target.layout.numel() * target.layout.element_size()
            tensor = self._scratch[start : start + nbytes].view(target.layout.dtype).view(target.layout.shape)
            start += nbytes
            yield target, tensor
            tensor = tensor.detach()
            tensor.__class__ = target.layout.__class__
            tensor.__dict__ = target.layout.__dict__.copy()
            setattr(module, target.attribute, tensor)

    def pack(self, module: Any, targets: Sequence[Target]) -> None:
        """Have vLLM process the filled layer as it does after loading, and put its own parameters back."""
        if _is_processed(module):
            if _is_embedding(module):
                module.cpu_linear = _PackWhenUsed(module)
            else:
                _process(module)
        for target in targets:
            kept, made = self._kept[target.path], target.live
            if made is kept:
                continue
            if kept.numel():
                if (made.shape, made.dtype) != (kept.shape, kept.dtype):
                    raise EngineError(f"vLLM made {list(made.shape)} of {target.path}, which was {list(kept.shape)}")
                kept.data.copy_(made)
            delattr(module, target.attribute)
            module.register_parameter(target.attribute, kept)

    def finish(self) -> None:
        """Pack a module that shares another module's parameter, as a tied LM head does."""
        for module in self._tied:
            _process(module)

    def _scratch_bytes(self, targets: Sequence[Target]) -> int:
        return sum(
            target.layout.numel() * target.layout.element_size() for target in targets if target.path in self._packed
        )


class _PackWhenUsed:
    """Stands for the packed copy of an embedding, which vLLM makes but which only models that use the embedding as their LM
    head ever read."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module

    def __call__(self, *arguments: Any) -> Any:
        _process(self._module)
        return self._module.cpu_linear(*arguments)


def is_as_loaded(target: Target) -> bool:
    """Tell whether a live parameter has the layout that the loader writes."""
    is_matrix = target.layout.dim() > 2  # the weights of all experts; a bias of each is taken as it is loaded
    return target.is_plain and not (is_matrix and kernel_of(target.module) is not None)


def _is_processed(module: torch.nn.Module) -> bool:
    return hasattr(getattr(module, "quant_method", None), "process_weights_after_loading")


def _is_embedding(module: torch.nn.Module) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    return isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)


def _process(module: Any) -> None:
    if hasattr(module, "cpu_linear"):
        module.cpu_linear = None  # frees the old packed copy, whose memory the new one then takes
    experts = kernel_of(module)
    if experts is not None:
        experts.process_weights_after_loading(module)
        return
    module.quant_method.process_weights_after_loading(module)
