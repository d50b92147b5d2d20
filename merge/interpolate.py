"""θ at a point, tensor by tensor: along the line's method (`merge.methods`), straight unless it says otherwise.

Always from the parents, never from the previous λ, computed in fp32 and rounded once to the checkpoint's dtype. Live
switching and export use this same function, so that both give the same bits on one kind of device; it works element by
element, so that slicing a tensor first changes nothing.

Several aligned checkpoints are added to base with a λ each: G. Ilharco et al., "Editing models with task arithmetic", ICLR
2023. Where at most one λ is not 0 that is the line to this one, computed as such. Else, in fp32 and rounded once,

    s_0 = base,  s_k = s_{k−1} + λ_k · (aligned_k − base)

over the λs that are not 0, in the order of the names, each difference, product and sum rounded by itself. With u = 2⁻²⁴,
d_k = aligned_k − base and S = |base| + Σ |λ_k d_k|: λ_k, d_k and their product are rounded once each, 3u |λ_k d_k|, and the
m sums u |s_k| ≤ uS each, together at most (m + 3)uS to first order. In half precision the last rounding adds half a unit in
the last place of the result. Where numbers are subnormal in fp32 each product adds at most 2⁻¹⁵⁰.

A line may weigh λ by tensor (`merge.lam_map`). That and its method come to what is known once for each tensor, its `Rule`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import safe_open

from contract.points import coordinates
from merge.checkpoint import Checkpoint
from merge.lam_map import scaled
from merge.methods import METHODS, Path, linear
from merge.pair import Pair
from merge.vocabulary import runs


@dataclass(frozen=True, slots=True)
class Rule:
    """How one tensor moves with λ."""

    weight: str = "1"  # on λ
    path: Path | None = None  # where it does not go straight


PLAIN = Rule()
_CPU = torch.device("cpu")
_BROUGHT_BYTES = 256 << 20  # of a parent on a device at a time


def interpolate(
    base: torch.Tensor, aligned: torch.Tensor, lam: str, out: torch.Tensor | None = None, rule: Rule = PLAIN
) -> torch.Tensor:
    """Return one tensor of θ(λ), in the parents' dtype and shape.

    At λ = 0 and λ = 1 it is the parent itself (lerp would turn −0.0 into +0.0), uncopied where no `out` is given.

    Args:
        base: any shape, float16, bfloat16 or float32.
        aligned: same shape, dtype and device.
        lam: canonical λ.
        out: where to put the result, and what is returned then; same shape, dtype and device.
        rule: of the tensor, also where these are parts of it.
    """
    lam = scaled(lam, rule.weight)
    if lam in ("0", "1"):
        parent = base if lam == "0" else aligned
        return parent if out is None else out.copy_(parent)
    if rule.path is None:
        return linear.between(base, aligned, float(lam), out)
    made = rule.path.between(base, aligned, float(lam))
    return made.to(base.dtype) if out is None else out.copy_(made)


def theta(
    parents: Sequence[torch.Tensor], point: str, out: torch.Tensor | None = None, rule: Rule = PLAIN
) -> torch.Tensor:
    """Return one tensor of θ at a point, in the parents' dtype and shape.

    Args:
        parents: base and the aligned ones in the order of their names, as `interpolate` takes two; those that `needed` does
            not name are not read.
        point: canonical, see `contract.points`.
        out, rule: as `interpolate` takes them.
    """
    lams = list(coordinates(point).values())
    weighed = [scaled(lam, rule.weight) for lam in lams]
    away = [place for place, lam in enumerate(weighed) if lam != "0"]
    base = parents[0]
    if len(away) < 2:
        place = away[0] if away else 0
        return interpolate(base, parents[1 + place], lams[place], out, rule)
    made = base.to(torch.float32, copy=True)
    for place in away:
        # Product and sum apart: `add` with a factor could be fused, and would round otherwise.
        made.add_((parents[1 + place].float() - base.float()).mul_(float(weighed[place])))
    return made.to(base.dtype) if out is None else out.copy_(made)


def along_one(point: str, rule: Rule = PLAIN) -> tuple[int, str] | None:
    """Return which aligned parent a tensor moves towards, and its λ after the tensor's weight, where that is all there is.

    Returns:
        The parent's place, 1 for the first aligned one; None where its way is not straight, or towards several.
    """
    weighed = [scaled(lam, rule.weight) for lam in coordinates(point).values()]
    away = [place for place, lam in enumerate(weighed, 1) if lam != "0"]
    if rule.path is not None or len(away) > 1:
        return None
    place = away[0] if away else 1
    return place, weighed[place - 1]


def needed(point: str, rule: Rule = PLAIN) -> tuple[int, ...]:
    """Return the places of the parents that `theta` reads."""
    weighed = [scaled(lam, rule.weight) for lam in coordinates(point).values()]
    away = tuple(place for place, lam in enumerate(weighed, 1) if lam != "0")
    return away if [lam for lam in weighed if lam != "0"] == ["1"] else (0, *away)


def tensor_rules(pair: Pair) -> dict[str, Rule]:
    """Return the rule of every tensor; where these have ways of their own, this reads both parents once."""
    paths: dict[str, Path | None] = {}
    if path := METHODS[pair.line.method].path:
        base, aligned = dict(mapped_tensors(pair.base)), dict(mapped_tensors(pair.aligned))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # each tensor by one thread: its sums have one order
            found = pool.map(lambda name: path(base[name], aligned[name], pair.aligned_rows.get(name, ())), aligned)
            paths = dict(zip(aligned, found, strict=True))
    return {name: Rule(pair.weights.get(name, "1"), paths.get(name)) for name in pair.base.tensors}


def mapped_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in natural order of the names.

    Each tensor is a memory map of its part of the file: nothing is read before its elements are, and processes on one node
    share what was read through the page cache. It stays usable after the iteration.
    """
    with ExitStack() as stack:
        files: dict[object, object] = {}
        for name, info in checkpoint.tensors.items():
            if info.file not in files:
                files[info.file] = stack.enter_context(safe_open(info.file, framework="pt", device="cpu"))
            tensor: torch.Tensor = files[info.file].get_tensor(name)  # type: ignore[attr-defined]
            yield name, tensor


def interpolated_tensors(
    pair: Pair, point: str, rules: Mapping[str, Rule] | None = None, device: torch.device = _CPU
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of θ in natural order of the names, one tensor in memory at a time.

    Args:
        pair: the parents and the line.
        point: canonical.
        rules: `tensor_rules` of the pair, for who has them already.
        device: where to compute, and where the tensors are. Beside a tensor itself it holds a part of each parent.
    """
    rules = tensor_rules(pair) if rules is None else rules
    for together in zip(*map(mapped_tensors, pair.parents.values()), strict=True):
        name, parents = together[0][0], [tensor for _, tensor in together]
        spans = pair.aligned_rows.get(name)
        if spans is None:
            yield name, _theta_on(device, parents, point, rules[name])
            continue
        base, aligned = parents
        made = torch.empty_like(aligned, device=device)
        for start, stop, is_kept in runs(0, len(aligned), spans):
            rows = slice(start, stop)
            if is_kept:
                made[rows] = aligned[rows].to(device)
            else:
                _theta_on(device, [base[rows], aligned[rows]], point, rules[name], made[rows])
        yield name, made


def _theta_on(
    device: torch.device, parents: Sequence[torch.Tensor], point: str, rule: Rule, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As `theta`, on a device to which the parents, which are in host memory, are brought part by part."""
    if device.type == "cpu":
        return theta(parents, point, out, rule)
    made = torch.empty_like(parents[0], device=device) if out is None else out
    for index in chunks(tuple(made.shape), made.element_size(), _BROUGHT_BYTES):
        read = needed(point, rule)
        # Of the others `theta` reads nothing.
        brought = [parent[index].to(device) if place in read else made[index] for place, parent in enumerate(parents)]
        theta(brought, point, made[index], rule)
    return made


def chunks(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into blocks of at most `limit` bytes, a multiple of 8, along its leading dimensions.

    Yields index tuples that cover every element once, in order. Arithmetic on shapes alone, in Python's integers: a tensor
    of 2³¹ elements or more is as good as any.
    """
    if math.prod(shape) * itemsize <= limit or not shape:
        yield tuple(slice(0, side) for side in shape)
        return
    row_bytes = math.prod(shape[1:]) * itemsize
    rows = limit // row_bytes
    if rows == 0:
        for row in range(shape[0]):
            for rest in chunks(shape[1:], itemsize, limit):
                yield slice(row, row + 1), *rest
    else:
        for row in range(0, shape[0], rows):
            yield slice(row, min(row + rows, shape[0])), *(slice(0, side) for side in shape[1:])
