"""This module has the interface of a route that brings θ(λ) into a rank's parameters, and the route that is always right.

The reload route goes through vLLM's own loader, so it knows every layout that vLLM can load. `serve.switch.resident` is the
fast one; each engine holds the two against each other when it starts.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from contract.errors import EngineError
from merge.digest import WeightDigest
from merge.interpolate import Rule, interpolated_tensors
from merge.pair import Pair
from serve.switch.experts import kernel_of, lay_out_again
from serve.switch.recorder import Written, storage_of
from serve.switch.trace import derived

if TYPE_CHECKING:
    from vllm.config import ModelConfig


Reads = Literal["opened", "mapped", "not at all"]  # the files are opened anew, were mapped, or are no longer needed


class Route(Protocol):
    """Moves the live parameters of one rank to a point."""

    reads: Reads
    """How a switch reads the parents' files."""

    def switch(self, lam: str) -> str:
        """Make θ(λ) live, bit-equal to a fresh load of the exported θ(λ).

        Returns:
            `merge.digest` of what was made live; two ranks with the same share of the model and the same route agree.

        Raises:
            Exception: any; the parameters are then half-written.
        """


class ReloadRoute:
    """Feeds interpolated checkpoint tensors to vLLM's layer-by-layer reload.

    vLLM reloads into parameters without memory, and writes down what their weight loaders are given. What a model copies
    into a parameter by itself, as GPT-OSS does with its experts, is lost there without a word. Modules that have such
    parameters are found at the first switch, and get memory before the load from then on.
    """

    reads: Reads = "opened"

    def __init__(
        self,
        pair: Pair,
        rules: Mapping[str, Rule],
        model: torch.nn.Module,
        model_config: "ModelConfig",
        device: torch.device,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`names` says what the model calls the checkpoint's tensors, where it is not as the checkpoint does."""
        # Tensors are interpolated on the rank's device: on a CPU with one thread it would take minutes.
        self._device = device
        self._pair, self._rules, self._names = pair, rules, names or {}
        self._model: Any = model  # vLLM's models have load_weights
        self._model_config = model_config
        made = {id(module._parameters[name]) for module, names in derived(model).items() for name in names}
        names_of: dict[int, set[str]] = {}  # a module may be had under several names, of which a loader tells one
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names_of.setdefault(id(parameter), set()).add(name)
        self._expected = {name: names_of[id(one)] for name, one in model.named_parameters() if id(one) not in made}
        self._tied = tied_modules(model)
        self._with_memory: set[torch.nn.Module] = set()

    def switch(self, lam: str) -> str:
        unfilled, digest = self._load(lam)
        if unfilled:
            self._with_memory |= {self._model.get_submodule(path.rpartition(".")[0]) for path in unfilled}
            unfilled, digest = self._load(lam)
        if unfilled:  # a parameter that keeps its old value would be a silent mixture of two λs
            raise EngineError(f"vLLM's reload writes nothing into {', '.join(unfilled[:5])} at λ = {lam}")
        return digest.hex()

    def _load(self, lam: str) -> tuple[list[str], WeightDigest]:
        """Return the parameters that nothing was written into, and the digest of what was loaded."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import materialize_layer

        digest = WeightDigest(self._device)

        def digested() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in interpolated_tensors(self._pair, lam, self._rules, self._device):
                digest.add_whole(name, tensor)
                yield self._names.get(name, name), tensor

        initialize_layerwise_reload(self._model)
        for module in self._with_memory:
            materialize_layer(module, get_layerwise_info(module))
        with Written() as written:
            loaded = self._model.load_weights(digested())
        unfilled = []
        for path, module in self._model.named_modules():
            info = get_layerwise_info(module)
            given = {name for name, _ in info.loaded_weights}
            for name, parameter in module._parameters.items():
                full = f"{path}.{name}".lstrip(".")
                if full not in self._expected or name in given or not info.can_load():
                    continue
                if parameter.is_meta or (module in self._with_memory and storage_of(parameter) not in written.storages):
                    unfilled.append(full)
        for module in self._with_memory:
            _layerwise_process(module, get_layerwise_info(module))
        finalize_layerwise_reload(self._model, self._model_config)
        # vLLM reloads a tied weight through one of its owners and takes the others for done. What those made of the weight
        # when the engine started, such as the CPU's packed copy for the LM head, would stay that of the first λ.
        for module in self._tied:
            module.quant_method.process_weights_after_loading(module)
        for module in self._model.modules():
            if kernel_of(module) is not None:
                lay_out_again(module)
        if loaded is not None:
            told = loaded | {*unfilled}
            if missing := sorted(name for name, aliases in self._expected.items() if told.isdisjoint(aliases)):
                raise EngineError(f"vLLM loaded no weights into {', '.join(missing[:5])} at λ = {lam}")
        return unfilled, digest


def tied_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules whose weight belongs to a module before them, and that make something of it at load.

    Experts share their router's bias, which is no weight: what they make is of weights of their own.
    """
    owners: dict[int, torch.nn.Module] = {}
    tied: list[Any] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owner = owners.setdefault(id(parameter), module)
            if name == "weight" and owner is not module and hasattr(module, "quant_method"):
                tied.append(module)
    return tied
