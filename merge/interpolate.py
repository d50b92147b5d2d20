"""This module computes θ at a point, tensor by tensor, by the line's method (`merge.methods`).

θ is always computed from the parents, never from the previous λ, in fp32, and rounded once to the checkpoint's dtype. Live
switching and export use this same function, so that both give the same bits on one kind of device; it works element by
element, so that slicing a tensor first changes nothing.

Several aligned checkpoints are added to base with a λ each (G. Ilharco et al., "Editing models with task arithmetic", ICLR
2023). Where at most one λ is not 0, θ lies on the line to that checkpoint and is computed as such. Elsewhere θ is the last

    s_0 = base,  s_k = s_{k−1} + λ_k · (aligned_k − base)

over the m λs that are not 0, in the order of the names, computed in fp32 and rounded once to the checkpoint's dtype. Each
difference, product and sum is rounded by itself. Let u = 2⁻²⁴, d_k = aligned_k − base and S = |base| + Σ |λ_k d_k|. Rounding
λ_k, d_k and their product makes an error of 3u |λ_k d_k|, and each of the m sums one of u |s_k| ≤ uS; together they are at
most (m + 3)uS to first order. In half precision the last rounding adds half a unit in the last place of the result. Where
numbers are subnormal in fp32, each product adds at most 2⁻¹⁵⁰.

A line may weigh λ by tensor (`merge.lam_map`). The weight and the line's method come to a few things that are known once for
each tensor, its `Rule`.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from contract.points import coordinates
from merge.checkpoint import Checkpoint
from merge.computed import mapped, whole
from merge.lam_map import scaled
from merge.methods import METHODS, TensorPath, linear
from merge.pair import Pair
from merge.vocabulary import runs


@dataclass(frozen=True, slots=True)
class Rule:
    """Says how one tensor moves with λ."""

    weight: str = "1"  # the factor on λ, a canonical decimal
    path: TensorPath | None = None  # the tensor's own path; None where the tensor goes straight


PLAIN = Rule()
_CPU = torch.device("cpu")
_BROUGHT_BYTES = 256 << 20  # bytes of each parent that are on a device at a time


def interpolate(
    base: torch.Tensor, aligned: torch.Tensor, lam: str, out: torch.Tensor | None = None, rule: Rule = PLAIN
) -> torch.Tensor:
    """Return one tensor of θ(λ), in the parents' dtype and shape.

    At λ = 0 and λ = 1 it is the parent itself (lerp would turn −0.0 into +0.0), uncopied where no `out` is given.

    Args:
        base: a float16, bfloat16 or float32 tensor of any shape.
        aligned: a tensor of base's shape, dtype and device.
        lam: the canonical λ.
        out: a tensor of base's shape, dtype and device, into which the result is written and which is then returned.
        rule: the rule of the whole tensor, also where `base` and `aligned` are parts of it.
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
        parents: base and then the aligned tensors in the order of their names, of one shape, dtype and device; those that
            `needed` does not name are not read.
        point: the canonical point, see `contract.points`.
        out: a tensor for the result, as `interpolate` takes it.
        rule: the rule of the whole tensor, as `interpolate` takes it.
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
        # The product is rounded before it is added: an `add_` with a factor could fuse the two, and would round otherwise.
        made.add_((parents[1 + place].float() - base.float()).mul_(float(weighed[place])))
    return made.to(base.dtype) if out is None else out.copy_(made)


def along_one(point: str, rule: Rule = PLAIN) -> tuple[int, str] | None:
    """Return which aligned parent a tensor moves straight towards, and how far, if it moves towards one alone.

    Returns:
        The parent's place, 1 for the first aligned one, and λ times the tensor's weight; None where the tensor does not go
        straight, or goes towards several parents.
    """
    weighed = [scaled(lam, rule.weight) for lam in coordinates(point).values()]
    away = [place for place, lam in enumerate(weighed, 1) if lam != "0"]
    if rule.path is not None or len(away) > 1:
        return None
    place = away[0] if away else 1
    return place, weighed[place - 1]


def needed(point: str, rule: Rule = PLAIN) -> tuple[int, ...]:
    """Return the places of the parents that `theta` reads at a point: 0 for base, 1 for the first aligned one."""
    weighed = [scaled(lam, rule.weight) for lam in coordinates(point).values()]
    away = tuple(place for place, lam in enumerate(weighed, 1) if lam != "0")
    return away if [lam for lam in weighed if lam != "0"] == ["1"] else (0, *away)


def tensor_rules(pair: Pair, threads: int | None = None) -> dict[str, Rule]:
    """Return the rule of every tensor by its name; where tensors have paths of their own, this reads both parents once.

    Args:
        pair: the parents and the line.
        threads: how many tensors are read at the same time; None: as many as PyTorch has threads.
    """
    paths: dict[str, TensorPath | None] = {}
    if path := METHODS[pair.line.method].path:
        base, aligned = mapped(pair.base), mapped(pair.aligned)
        # One thread does a whole tensor, so that its sums have one order.
        with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
            found = pool.map(
                lambda name: path(whole(base[name]), whole(aligned[name]), pair.aligned_rows.get(name, ())), aligned
            )
            paths = dict(zip(aligned, found, strict=True))
    return {name: Rule(pair.weights.get(name, "1"), paths.get(name)) for name in pair.base.tensors}


def mapped_tensors(checkpoint: Checkpoint, only: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) in natural order of the names; of those in `only`, where it is given.

    Each tensor is a memory map of its part of the file, see `merge.computed.mapped`, or is computed here and now. Each stays
    usable after the iteration.
    """
    for name, tensor in mapped(checkpoint).items():
        if only is None or name in only:
            yield name, whole(tensor)


def interpolated_tensors(
    pair: Pair,
    point: str,
    rules: Mapping[str, Rule] | None = None,
    device: torch.device = _CPU,
    only: Container[str] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of θ in natural order of the names, one tensor in memory at a time.

    Args:
        pair: the parents and the line.
        point: the canonical point.
        rules: the pair's `tensor_rules`, for a caller that has them already.
        device: the device that computes and holds the result. Beside one tensor it holds a part of each parent.
        only: names of those tensors that are wanted; None: all.
    """
    rules = tensor_rules(pair) if rules is None else rules
    for together in zip(*(mapped_tensors(parent, only) for parent in pair.parents.values()), strict=True):
        name, parents = together[0][0], [tensor for _, tensor in together]
        ranges = pair.aligned_rows.get(name)
        if ranges is None:
            yield name, _theta_on(device, parents, point, rules[name])
            continue
        base, aligned = parents
        made = torch.empty_like(aligned, device=device)
        for start, stop, is_kept in runs(0, len(aligned), ranges):
            rows = slice(start, stop)
            if is_kept:
                made[rows] = aligned[rows].to(device)
            else:
                _theta_on(device, [base[rows], aligned[rows]], point, rules[name], made[rows])
        yield name, made


def _theta_on(
    device: torch.device, parents: Sequence[torch.Tensor], point: str, rule: Rule, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what `theta` returns, computed on a device to which the parents are brought from host memory part by part."""
    if device.type == "cpu":
        return theta(parents, point, out, rule)
    made = torch.empty_like(parents[0], device=device) if out is None else out
    for index in chunks(tuple(made.shape), made.element_size(), _BROUGHT_BYTES):
        read = needed(point, rule)
        # `theta` reads nothing of the other parents, so any tensor may stand in for them.
        brought = [parent[index].to(device) if place in read else made[index] for place, parent in enumerate(parents)]
        theta(brought, point, made[index], rule)
    return made


def chunks(shape: tuple[int, ...], itemsize: int, limit: int) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into blocks of at most `limit` bytes, a multiple of 8, along its leading dimensions.

    The index tuples that it yields cover every element once, in order. It computes with shapes alone, in Python's integers,
    so that a tensor of 2³¹ elements or more is cut as well as any.
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
