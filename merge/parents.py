"""What θ(λ) is made of: checkpoints as they were opened become parents with the same tensors, in name, shape and dtype.

Adapters become what they make of base, LM heads are had by all or by none, and each tensor has the widest of its dtypes.
"""

from collections.abc import Mapping
from dataclasses import replace

from merge.adapter import apply_adapter
from merge.checkpoint import Checkpoint
from merge.heads import has_own_head, unify_heads

FLOATS = {"F16", "BF16", "F32"}


def resolve(
    opened: Mapping[str, Checkpoint], problems: list[str], warnings: list[str], is_shared: bool = False
) -> dict[str, Checkpoint]:
    """Return the parents by role.

    Args:
        opened: base first, and then the aligned checkpoints, by role.
        problems: gets a line for everything that cannot be done.
        warnings: gets a line for everything that is not as it stands in the files.
        is_shared: whether θ(λ) has aligned's shapes (`--vocab shared`).
    """
    base = opened["base"]
    if base.is_adapter:
        problems.append(f"base {base.source} is an adapter: give the checkpoint that it was made for as --base")
        return dict(opened)
    parents = {"base": base}
    for role, one in list(opened.items())[1:]:
        if one.is_adapter and is_shared:
            problems.append(f"--vocab shared does not go with an adapter: {role} has base's vocabulary")
        parents[role] = apply_adapter(one, base, role, problems, warnings) if one.is_adapter else one
    for role, one in parents.items():
        if one.unread:
            warnings.append(
                f"{role}: {len(one.unread)} buffers that no model reads are left out, {one.unread[0]} among them"
            )
    adapted = [role for role, one in opened.items() if one.is_adapter]
    loadable = [one for one in opened.values() if not one.is_adapter]
    if any(has_own_head(parents[role]) for role in adapted) and not any(map(has_own_head, loadable)):
        problems.append(
            f"{' and '.join(adapted)} brings an LM head of its own, and no engine starts with a base that ties its head: "
            "merge the adapter with peft's merge_and_unload(), and give the merged checkpoint"
        )
    return _widened(unify_heads(parents, problems, warnings, is_shared), warnings)


def _widened(parents: Mapping[str, Checkpoint], warnings: list[str]) -> dict[str, Checkpoint]:
    """Give each tensor the narrowest dtype that holds the numbers of all parents."""
    first, *rest = parents.values()
    wide: dict[str, str] = {}
    for name in first.tensors:
        dtypes = {one.tensors[name].dtype for one in (first, *rest) if name in one.tensors}
        if len(dtypes) > 1 and dtypes <= FLOATS:
            wide[name] = "F32"  # BF16 and F16 hold different numbers, too
    if not wide:
        return dict(parents)
    kinds = {
        role: sorted({one.tensors[name].dtype for name in wide if name in one.tensors}) for role, one in parents.items()
    }
    told = " and ".join(f"{'/'.join(dtypes)} in {role}" for role, dtypes in kinds.items())
    warnings.append(f"{len(wide)} tensors are {told}: θ(λ) has them in F32, which holds the numbers of both exactly")
    return {
        role: replace(
            one,
            tensors={
                name: replace(info, dtype=wide[name]) if name in wide else info for name, info in one.tensors.items()
            },
        )
        for role, one in parents.items()
    }
