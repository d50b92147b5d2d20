"""This module learns where each checkpoint tensor goes in a rank's parameters, by watching vLLM's own loader.

Every architecture in vLLM loads itself: it renames tensors, fuses projections, takes its tensor-parallel slice, and in the
end mostly copies a view of a checkpoint tensor into a view of a parameter. `trace` lets it do so once with tensors and
parameters that have no memory, and writes the copies down (`serve.switch.recorder`). For a parameter that the
loader computes it writes down from which tensors, and the loader makes it again (`serve.switch.loader_made`). A parameter
that is neither is refused, and never guessed.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from merge.digest import parameter_key, takes_words
from merge.vocabulary import RowRanges, runs
from serve.switch.recorder import Recorder, UntraceableError, Writes, storage_of
from serve.switch.views import View

NO_ROWS: Mapping[str, RowRanges] = {}


@dataclass(frozen=True, slots=True)
class Piece:
    """One copy of the loader: the `source` window of checkpoint tensor `name` fills the `place` window of a parameter."""

    name: str
    source: View
    place: View
    is_kept: bool = False  # rows that are aligned's at every λ


@dataclass(frozen=True, slots=True)
class Target:
    """A target is one parameter of a rank, as its loader sees it, with all that goes into it.

    `layout` is the loader's parameter without memory: contiguous, with its dtype and attributes, before post-processing.
    """

    module: torch.nn.Module
    attribute: str
    path: str  # the name that named_parameters() has for it
    layout: torch.Tensor
    pieces: tuple[Piece, ...]
    computed_from: tuple[str, ...]  # the checkpoint tensors that the loader computes it from; it then has no pieces
    dtype: torch.dtype  # the dtype of the checkpoint's tensors; where the parameter is computed, that of the layout
    key: int  # for the digest
    words: bool  # for the digest

    @property
    def live(self) -> torch.Tensor:
        """Return what the model computes with now; it has another layout where post-processing replaced it."""
        tensor: torch.Tensor = getattr(self.module, self.attribute)
        return tensor

    @property
    def is_plain(self) -> bool:
        """Tell whether the live tensor has the layout that the loader writes."""
        live, layout = self.live, self.layout
        return (live.shape, live.stride(), live.dtype) == (layout.shape, layout.stride(), layout.dtype)

    @property
    def columns(self) -> int:
        """Return the number of elements in a row."""
        return View.of(self.layout).shape[-1]


def trace(
    model: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    aligned_rows: Mapping[str, RowRanges] = NO_ROWS,
    names: Mapping[str, str] | None = None,
) -> list[Target]:
    """Return the parameters that a checkpoint fills, in the model's order.

    Args:
        model: a loaded vLLM model of this rank, which is left as it is.
        tensors: the whole checkpoint, each tensor with a storage of its own; no element is read.
        aligned_rows: see `merge.pair.Pair`; pieces are cut where these begin and end.
        names: what the model calls the checkpoint's tensors, where it is not as the checkpoint does.

    Raises:
        UntraceableError: the loader does something else than copying, or fills a parameter in part only.
        Exception: whatever vLLM's loader raises.
    """
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    owners: dict[int, tuple[torch.nn.Module, str, torch.Tensor]] = {}
    paths: dict[int, str] = {}
    without_memory = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}

    def find() -> None:
        for path, module in model.named_modules():
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and storage_of(tensor) not in owners:
                    owners[storage_of(tensor)] = module, attribute, tensor
                    paths[storage_of(tensor)] = f"{path}.{attribute}".lstrip(".")

    with on_meta(model), torch.no_grad():
        find()
        called = names or {}
        with Recorder(paths, without_memory) as recorder:
            model.load_weights((called.get(name, name), tensor) for name, tensor in without_memory.items())  # type: ignore[operator]
        find()  # such as are made while the model loads: an LM head gets a bias only where the checkpoint has one
    if recorder.writes.keys() - owners.keys():
        raise UntraceableError("the loader fills what is no parameter of the model")
    targets = [
        _target(*owners[key], paths[key], recorder.writes[key], tensors, aligned_rows)
        for key in owners
        if key in recorder.writes and recorder.writes[key].names
    ]
    live = [id(target.live) for target in targets]
    if len(set(live)) < len(live):
        raise UntraceableError("a tied parameter is loaded twice")
    made = {id(module._parameters[name]) for module, names in derived(model).items() for name in names}
    if missing := [name for key, name in named.items() if key not in live and key not in made]:
        raise UntraceableError(f"the checkpoint fills nothing of {', '.join(missing[:5])}")
    return targets


@contextlib.contextmanager
def on_meta(model: torch.nn.Module) -> Iterator[None]:
    """Give a loaded model the parameters that its loader expects, without memory; in the end it has its own again."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

    saved = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
    try:
        for module, _, _ in saved:
            restore_layer_on_meta(module, get_layerwise_info(module))
        yield
    finally:
        for module, parameters, buffers in saved:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)


def derived(model: torch.nn.Module) -> dict[Any, list[str]]:
    """Return the modules that make parameters of their own out of loaded ones, and those parameters' names.

    They were not there when vLLM made the model, and are in no checkpoint. Multi-head latent attention, for example,
    absorbs a projection in this way. Their module makes them anew in its `process_weights_after_loading`.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    found = {}
    for module in model.modules():
        at_load, _ = get_layerwise_info(module).restore_metadata
        names = [name for name, one in module._parameters.items() if one is not None and name not in at_load]
        if names and callable(getattr(module, "process_weights_after_loading", None)):
            found[module] = names
    return found


def _cut(pieces: list[Piece], tensors: dict[str, torch.Tensor], aligned_rows: Mapping[str, RowRanges]) -> list[Piece]:
    """Cut pieces so that each has rows of one kind."""
    found: list[Piece] = []
    for piece in pieces:
        ranges, source, place = aligned_rows.get(piece.name), piece.source, piece.place
        if ranges is None:
            found.append(piece)
            continue
        columns = math.prod(tensors[piece.name].shape[1:])
        first, left = divmod(source.offset, columns)
        reach = sum((side - 1) * step for side, step in zip(source.shape[1:], source.stride[1:], strict=True))
        if source.stride[0] != columns or left + reach >= columns:
            raise UntraceableError(f"rows of {piece.name} are not loaded as rows")
        for start, stop, is_kept in runs(first, first + source.shape[0], ranges):
            index = (slice(start - first, stop - first), *(slice(0, side) for side in source.shape[1:]))
            found.append(Piece(piece.name, source.block(index), place.block(index), is_kept))
    return found


def _target(
    module: torch.nn.Module,
    attribute: str,
    layout: torch.Tensor,
    path: str,
    writes: Writes,
    tensors: dict[str, torch.Tensor],
    aligned_rows: Mapping[str, RowRanges],
) -> Target:
    # An element that nothing fills would keep what an earlier λ left there, unless it is padding.
    want, have = layout.numel(), sum(math.prod(copy.place.shape) for copy in writes.copies) + writes.computed
    dtypes = {tensors[name].dtype for name in writes.names}
    is_computed = bool(writes.computed_from) or len(dtypes) > 1 or not layout.is_contiguous()
    if (have > want and not is_computed) or (have < want and not writes.is_zeroed):
        raise UntraceableError(f"{path} has {want} elements, of which the checkpoint fills {have}")
    key = parameter_key(path)
    if is_computed:
        return Target(module, attribute, path, layout, (), tuple(sorted(writes.names)), layout.dtype, key, False)
    (dtype,) = dtypes
    pieces = _cut([Piece(copy.name, copy.source, copy.place) for copy in writes.copies], tensors, aligned_rows)
    columns = View.of(layout).shape[-1]
    windows = [(piece.place.offset % columns, piece.place.shape[-1]) for piece in pieces]
    words = takes_words(dtype.itemsize, columns, windows)
    return Target(module, attribute, path, layout, tuple(pieces), (), dtype, key, words)
