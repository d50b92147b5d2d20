"""This module has vLLM's loader make the parameters that it computes again, out of interpolated tensors.

A state space's decay −exp(A_log) is such a parameter, and so are projections that a checkpoint has in another order. At λ
they are what the loader makes of the tensors at λ. It is fed with those alone, and writes into memory of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from contract.errors import EngineError
from merge.digest import WeightDigest
from merge.interpolate import Rule, interpolated_tensors
from merge.pair import Pair
from serve.switch.recorder import Written, storage_of
from serve.switch.trace import Target, on_meta


class LoaderMade:
    """This makes the computed parameters of one rank.

    Args:
        pair: the parents.
        rules: `tensor_rules` of the pair.
        model: this rank's loaded model.
        device: the model's.
        targets: of the model.
        names: what the model calls the checkpoint's tensors, where it is not as the checkpoint does.
    """

    def __init__(
        self,
        pair: Pair,
        rules: Mapping[str, Rule],
        model: torch.nn.Module,
        device: torch.device,
        targets: Sequence[Target],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._pair, self._rules, self._device = pair, rules, device
        self._model: Any = model  # vLLM's models have load_weights
        self._targets = [target for target in targets if target.computed_from]
        # vLLM's reload puts loaders of its own in the place of these, which write nowhere when it is over.
        self._attributes = [target.layout.__dict__.copy() for target in self._targets]
        self._called = names or {}
        self._names = {name for target in self._targets for name in target.computed_from}

    def __bool__(self) -> bool:
        """Tell whether there is any such parameter."""
        return bool(self._targets)

    def make(self, lam: str, digest: WeightDigest) -> dict[str, torch.Tensor]:
        """Return the parameters at λ by path, each in the loader's layout, and take their tensors into the digest.

        Raises:
            EngineError: the loader wrote nothing into one of them.
        """
        if not self._targets:
            return {}
        made: dict[str, torch.Tensor] = {}
        tensors = {}
        for name, tensor in interpolated_tensors(self._pair, lam, self._rules, self._device, self._names):
            digest.add_whole(name, tensor)
            # At a parent the tensor is the parent's own memory, and a loader may change what it is given.
            tensors[self._called.get(name, name)] = tensor.clone()
        with on_meta(self._model), torch.no_grad():
            for target, attributes in zip(self._targets, self._attributes, strict=True):
                tensor = torch.zeros_like(target.layout, device=self._device)
                tensor.__class__ = target.layout.__class__
                tensor.__dict__ = attributes.copy()
                target.module._parameters[target.attribute] = tensor  # type: ignore[assignment]
                made[target.path] = tensor.detach()
            with Written() as written:
                self._model.load_weights(iter(tensors.items()))
        if unwritten := [path for path, tensor in made.items() if storage_of(tensor) not in written.storages]:
            raise EngineError(f"vLLM's loader writes nothing into {', '.join(unwritten[:5])} at λ = {lam}")
        return made
