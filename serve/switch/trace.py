"""Where each checkpoint tensor goes in a rank's parameters, learnt by watching vLLM's own loader.

Every architecture in vLLM loads itself: it renames tensors, fuses projections, takes its tensor-parallel slice, and in the
end copies a view of a checkpoint tensor into a view of a parameter. `trace` lets it do so once with parameters that have no
memory, writes the copies down and executes none. What cannot be expressed as such copies is refused, not guessed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contract.errors import LambdasweepError
from merge.digest import parameter_key, takes_words
from merge.vocabulary import Spans, runs

NO_ROWS: Mapping[str, Spans] = {}


class UntraceableError(LambdasweepError):
    """The loader does more than copy views of checkpoint tensors, or leaves a parameter unfilled."""


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a tensor, in elements, at least one-dimensional."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: torch.Tensor, start: int = 0) -> "View":
        """The window that `tensor` is on the tensor whose first element is element `start` of the storage."""
        if tensor.dim() == 0:
            tensor = tensor.expand(1)
        return View(tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()) - start)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same window on `tensor`."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.offset)

    def block(self, index: tuple[slice, ...]) -> "View":
        """The part of the window that `index`, from `merge.interpolate.chunks`, cuts out."""
        offset = self.offset + sum(part.start * step for part, step in zip(index, self.stride, strict=True))
        return View(tuple(part.stop - part.start for part in index), self.stride, offset)


@dataclass(frozen=True, slots=True)
class Piece:
    """One copy of the loader: the `source` window of checkpoint tensor `name` fills the `place` window of a parameter."""

    name: str
    source: View
    place: View
    is_kept: bool = False  # rows that are aligned's at every λ


@dataclass(frozen=True, slots=True)
class Target:
    """One parameter of a rank, as its loader sees it, and all that goes into it.

    `layout` is the loader's parameter without memory: contiguous, with its dtype and attributes, before post-processing.
    """

    module: torch.nn.Module
    attribute: str
    path: str  # as in named_parameters()
    layout: torch.Tensor
    pieces: tuple[Piece, ...]
    dtype: torch.dtype  # of the checkpoint's tensors
    key: int  # for the digest
    words: bool  # for the digest

    @property
    def live(self) -> torch.Tensor:
        """What the model computes with now; of another layout where post-processing replaced it."""
        tensor: torch.Tensor = getattr(self.module, self.attribute)
        return tensor

    @property
    def is_plain(self) -> bool:
        """The live tensor has the layout that the loader writes."""
        live, layout = self.live, self.layout
        return (live.shape, live.stride(), live.dtype) == (layout.shape, layout.stride(), layout.dtype)

    @property
    def columns(self) -> int:
        """Elements in a row."""
        return View.of(self.layout).shape[-1]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is copied from checkpoint tensors into parameters, and keeps every such write from happening."""

    def __init__(self, paths: dict[int, str], sources: dict[int, tuple[str, torch.Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._paths = paths
        self._sources = sources
        self.pieces: dict[int, list[Piece]] = {}  # by the parameter's storage
        self.zeroed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = next((key for value in _written(func, args) if (key := _storage(value)) in self._paths), None)
        if target is None:
            return func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            name, tensor = self._sources.get(_storage(args[1]), ("", None))
            if tensor is None:
                raise UntraceableError(
                    f"{self._paths[target]} is loaded from something computed, not from the checkpoint"
                )
            # A copy may broadcast: the source is then seen with strides of 0.
            source = View.of(args[1].expand(args[0].shape), int(tensor.storage_offset()))
            self.pieces.setdefault(target, []).append(Piece(name, source, View.of(args[0])))
        elif func in (torch.ops.aten.zero_.default, torch.ops.aten.fill_.Scalar) and args[1:] in ((), (0,)):
            self.zeroed.add(target)
        else:
            raise UntraceableError(f"{self._paths[target]} is loaded with {func}, not by copying")
        return args[0]


def trace(
    model: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    aligned_rows: Mapping[str, Spans] = NO_ROWS,
    names: Mapping[str, str] | None = None,
) -> list[Target]:
    """Return the parameters that a checkpoint fills, in the model's order.

    Args:
        model: a loaded vLLM model of this rank; left as it is.
        tensors: the whole checkpoint, each tensor with a storage of its own; no element is read.
        aligned_rows: see `merge.pair.Pair`; pieces are cut where these begin and end.
        names: what the model calls the checkpoint's tensors, where it is not as the checkpoint does.

    Raises:
        UntraceableError: the loader does something else than copying, or fills a parameter in part only.
        Exception: whatever vLLM's loader raises.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

    named = {id(parameter): name for name, parameter in model.named_parameters()}
    saved = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    owners: dict[int, tuple[torch.nn.Module, str, torch.Tensor]] = {}
    paths: dict[int, str] = {}
    sources = {_storage(tensor): (name, tensor) for name, tensor in tensors.items()}
    try:
        for path, module in model.named_modules():
            restore_layer_on_meta(module, get_layerwise_info(module))
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and _storage(tensor) not in owners:
                    owners[_storage(tensor)] = module, attribute, tensor
                    paths[_storage(tensor)] = f"{path}.{attribute}".lstrip(".")
        recorder = _Recorder(paths, sources)
        with torch.no_grad(), recorder:
            called = names or {}
            model.load_weights((called.get(name, name), tensor) for name, tensor in tensors.items())  # type: ignore[operator]
    finally:
        for module, parameters, buffers in saved:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
    targets = [
        _target(
            *owners[key], paths[key], _cut(recorder.pieces[key], tensors, aligned_rows), key in recorder.zeroed, tensors
        )
        for key in owners
        if key in recorder.pieces
    ]
    live = [id(target.live) for target in targets]
    if len(set(live)) < len(live):
        raise UntraceableError("a tied parameter is loaded twice")
    made = {id(module._parameters[name]) for module, names in derived(model).items() for name in names}
    if missing := [name for key, name in named.items() if key not in live and key not in made]:
        raise UntraceableError(f"the checkpoint fills nothing of {', '.join(missing[:5])}")
    return targets


def derived(model: torch.nn.Module) -> dict[Any, list[str]]:
    """Return the modules that make parameters of their own out of loaded ones, and those parameters' names.

    They were not there when vLLM made the model, and are in no checkpoint: of multi-head latent attention, say, what is
    absorbed of a projection. Their module makes them anew in its `process_weights_after_loading`.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    found = {}
    for module in model.modules():
        at_load, _ = get_layerwise_info(module).restore_metadata
        names = [name for name, one in module._parameters.items() if one is not None and name not in at_load]
        if names and callable(getattr(module, "process_weights_after_loading", None)):
            found[module] = names
    return found


def _cut(pieces: list[Piece], tensors: dict[str, torch.Tensor], aligned_rows: Mapping[str, Spans]) -> list[Piece]:
    """Cut pieces so that each has rows of one kind."""
    found: list[Piece] = []
    for piece in pieces:
        spans, source, place = aligned_rows.get(piece.name), piece.source, piece.place
        if spans is None:
            found.append(piece)
            continue
        columns = math.prod(tensors[piece.name].shape[1:])
        first, left = divmod(source.offset, columns)
        reach = sum((side - 1) * step for side, step in zip(source.shape[1:], source.stride[1:], strict=True))
        if source.stride[0] != columns or left + reach >= columns:
            raise UntraceableError(f"rows of {piece.name} are not loaded as rows")
        for start, stop, is_kept in runs(first, first + source.shape[0], spans):
            index = (slice(start - first, stop - first), *(slice(0, side) for side in source.shape[1:]))
            found.append(Piece(piece.name, source.block(index), place.block(index), is_kept))
    return found


def _target(
    module: torch.nn.Module,
    attribute: str,
    layout: torch.Tensor,
    path: str,
    pieces: list[Piece],
    is_zeroed: bool,
    tensors: dict[str, torch.Tensor],
) -> Target:
    dtypes = {tensors[piece.name].dtype for piece in pieces}
    if len(dtypes) > 1 or not layout.is_contiguous():
        raise UntraceableError(f"{path} is put together from several dtypes, or is not contiguous")
    # An element that no piece fills would keep what an earlier λ left there, unless it is padding.
    want, have = layout.numel(), sum(math.prod(piece.place.shape) for piece in pieces)
    if have > want or (have < want and not is_zeroed):
        raise UntraceableError(f"{path} has {want} elements, of which the checkpoint fills {have}")
    (dtype,) = dtypes
    columns = View.of(layout).shape[-1]
    windows = [(piece.place.offset % columns, piece.place.shape[-1]) for piece in pieces]
    words = takes_words(dtype.itemsize, columns, windows)
    return Target(module, attribute, path, layout, tuple(pieces), dtype, parameter_key(path), words)


def _written(func: Any, args: Any) -> Iterable[torch.Tensor]:
    for value, argument in zip(args, func._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor):
            yield value


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]
