"""This module writes down what vLLM's loader does with checkpoint tensors, operation by operation.

Tensors and parameters have no memory while it runs, so that nothing is read, computed or written. Each tensor that comes
about carries the names of the checkpoint tensors that went into it. So a parameter is known either as copies of views of
checkpoint tensors, or by the names of those that the loader computes it from.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contract.errors import LambdasweepError
from serve.switch.views import View

_aten = torch.ops.aten


class UntraceableError(LambdasweepError):
    """The loader does something to a parameter that cannot be done again, or leaves it unfilled."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The `source` window of checkpoint tensor `name` fills the `place` window of a parameter."""

    name: str
    source: View
    place: View


@dataclass(slots=True)
class Writes:
    """This holds all that the loader writes into one parameter."""

    copies: list[Copy] = field(default_factory=list)
    is_zeroed: bool = False  # before, or where nothing is copied
    # The names of checkpoint tensors, where something computed is written.
    computed_from: set[str] = field(default_factory=set)
    computed: int = 0  # the number of elements that are written so

    @property
    def names(self) -> set[str]:
        """Return the names of the checkpoint tensors that the parameter is made of."""
        return self.computed_from | {copy.name for copy in self.copies}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what goes into parameters, and keeps every such write from happening.

    Args:
        parameters: path by `storage_of`.
        tensors: the checkpoint's, without memory, by name; each has a storage of its own.
    """

    def __init__(self, parameters: Mapping[int, str], tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = dict(parameters)
        self._sources = {storage_of(tensor): name for name, tensor in tensors.items()}
        # These stand by the storage of a tensor that comes about: the checkpoint tensors that went into it; and, where
        # elements were moved only, the tensor and the window that it copies, and the window that is then the whole of it.
        self._names = {key: {name} for key, name in self._sources.items()}
        self._moved: dict[int, tuple[str, View, View]] = {}
        self._alive: list[torch.Tensor] = []  # a storage that ended could give its number to another
        self.writes: dict[int, Writes] = {}  # the writes into each parameter, by the parameter's storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = list(_tensors([*args, *kwargs.values()]))
        written = list(_written(func, args, kwargs))
        target = self._target(func, given, written)
        if target is not None:
            self._write(target, func, args)
            return args[0]
        if func is _aten._to_copy.default and args[0].is_meta:
            kwargs.pop("device", None)  # tensors without memory need not be brought anywhere
        names = set().union(*(self._names_of(tensor) for tensor in given))
        found = func(*args, **kwargs)
        for tensor in written:  # a tensor that is changed in place is no copy any more
            self._names.setdefault(storage_of(tensor), set()).update(names)
            self._sources.pop(storage_of(tensor), None)
            self._moved.pop(storage_of(tensor), None)
        for tensor in _tensors([found]):
            key = storage_of(tensor)
            if names and key not in self._names:
                self._names[key] = set(names)
                self._alive.append(tensor)
                moves = func in (_aten.clone.default, _aten._to_copy.default) and tensor.dtype == args[0].dtype
                if moves and (copy := self._copy_of(args[0])) is not None:
                    self._moved[key] = *copy, View.of(tensor)
        return found

    def _target(self, func: Any, given: Iterable[torch.Tensor], written: Iterable[torch.Tensor]) -> int | None:
        """Return the storage of the parameter that is written into, if one is."""
        for tensor in written:
            key = storage_of(tensor)
            if key in self._parameters:
                return key
            # What has memory and gets something of the checkpoint is a parameter that the model makes while it loads.
            if func is _aten.copy_.default and not tensor.is_meta and any(self._names_of(one) for one in given):
                self._parameters[key] = "what the loader makes"
                self._alive.append(tensor)
                return key
        return None

    def _write(self, target: int, func: Any, args: Any) -> None:
        writes = self.writes.setdefault(target, Writes())
        if func in (_aten.zero_.default, _aten.fill_.Scalar) and args[1:] in ((), (0,)):
            writes.is_zeroed = True
            return
        if func is not _aten.copy_.default:
            raise UntraceableError(f"{self._parameters[target]} is loaded with {func}, not by copying")
        # A copy may broadcast: the source is then seen with strides of 0.
        copy = self._copy_of(args[1].expand(args[0].shape))
        if copy is not None:
            writes.copies.append(Copy(*copy, View.of(args[0])))
            return
        names = self._names_of(args[1])
        if not names:
            raise UntraceableError(f"{self._parameters[target]} is loaded from something that is not in the checkpoint")
        writes.computed_from |= names
        writes.computed += args[0].numel()

    def _copy_of(self, tensor: torch.Tensor) -> tuple[str, View] | None:
        """Return the name and the window of a checkpoint tensor that a tensor has the elements of, in its order."""
        key = storage_of(tensor)
        if key in self._sources:
            return self._sources[key], View.of(tensor)
        name, window, whole = self._moved.get(key, ("", None, None))
        return (name, window) if window is not None and View.of(tensor) == whole else None

    def _names_of(self, tensor: torch.Tensor) -> set[str]:
        key = storage_of(tensor)
        if key in self._parameters:
            return self.writes[key].names if key in self.writes else set()
        return self._names.get(key, set())


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the storages that anything is copied into."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.copy_.default:
            self.storages.add(storage_of(args[0]))
        return func(*args, **(kwargs or {}))


def storage_of(tensor: torch.Tensor) -> int:
    """Return a number that stands for a tensor's storage as long as it lives."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from _tensors([value])
