"""A map gives λ a weight for each module: `layers.0-9=0.3,layers.10-=0.8,embed=1` moves each tensor to λ · w instead of λ.

A pattern is one or more parts joined by dots, and matches a tensor whose name has such parts next to each other anywhere:
`mlp`, `layers.0-9.self_attn`, `q_proj`, or a whole name. A part may hold `*` and `?`; a layer is a number or a range: `3`,
`0-9`, `10-`. Three words stand for what architectures call differently: `layers` (also `h`, `blocks`), `embed` (the token
embedding) and `lm_head`. `*` alone matches every tensor.

A value is a decimal, or several decimals joined by `:`, as in `layers=0.2:1`: these are spread evenly over the layers that
the pattern matches, from the first to the last, and interpolated in between. If several patterns match a tensor, the one
with most parts holds (`*` counts as none). A tensor that no pattern names has weight 1: as the scale of a LoRA does, a map
changes what it names and nothing else.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase

from contract.errors import GridError, InputError
from contract.grid import MAX_DECIMALS, canonical

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in")
HEADS = ("lm_head", "embed_out")
_WORDS = {"layers": ("layers", "h", "blocks"), "embed": EMBEDDINGS, "lm_head": HEADS}
_RANGE = re.compile(r"(\d+)(-(\d*))?")


@dataclass(frozen=True, slots=True)
class MapRule:
    """One PATTERN=WEIGHT of a map; `text` is how it was written."""

    text: str
    parts: tuple[str, ...]
    values: tuple[Decimal, ...]

    @property
    def specificity(self) -> int:
        """Return the number of the pattern's parts; if two rules match a tensor, the more specific one holds."""
        return sum(part != "*" for part in self.parts)

    def matches(self, name: str) -> bool:
        own = name.split(".")
        width = len(self.parts)
        return self.parts == ("*",) or any(
            all(map(_fits, self.parts, own[at : at + width])) for at in range(len(own) - width + 1)
        )


def parse_map(text: str) -> tuple[MapRule, ...]:
    """Return the rules of a map that a user wrote.

    Raises:
        InputError: the map is malformed; the error lists everything that is.
    """
    rules: list[MapRule] = []
    problems: list[str] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, value = (side.strip() for side in item.partition("="))
        parts = tuple(pattern.split("."))
        if not equals or not all(parts):
            problems.append(f"{item!r} is not PATTERN=WEIGHT")
            continue
        try:
            values = tuple(Decimal(canonical(one)) for one in value.split(":"))
        except GridError as error:
            problems.append(f"{item!r}: {str(error).replace('λ', 'weight', 1)}")
            continue
        rules.append(MapRule(f"{pattern}={':'.join(map(_plain, values))}", parts, values))
    if problems:
        raise InputError(f"--lam-map {text!r} cannot be used; write it like layers.0-9=0.3,layers.10-=0.8", problems)
    return tuple(rules)


def resolve_map(rules: Iterable[MapRule], names: Iterable[str]) -> dict[str, str]:
    """Return the weight of every tensor that a map names, as a canonical decimal, by the tensor's name.

    A weight that is interpolated between two values of the map is rounded to 6 decimals.

    Raises:
        InputError: a pattern matches nothing, two equally specific ones match one tensor, or values are spread over no
            layers.
    """
    names, problems = list(names), []
    found: dict[str, list[tuple[MapRule, str]]] = {}
    for rule in rules:
        matched = [name for name in names if rule.matches(name)]
        layers = sorted({layer for name in matched if (layer := _layer(name)) is not None})
        if not matched:
            problems.append(f"{rule.text} matches no tensor of the pair, which has {_shown(names)}")
        elif len(rule.values) > 1 and any(_layer(name) is None for name in matched):
            problems.append(
                f"{rule.text} spreads its values over layers, but matches tensors of none: name layers only"
            )
        else:
            for name in matched:
                found.setdefault(name, []).append((rule, _weight(rule, _layer(name), layers)))
    weights: dict[str, str] = {}
    clashes: dict[str, str] = {}  # the first tensor that these equally specific rules match, by the rules' texts
    for name, rivals in found.items():
        most = max(rule.specificity for rule, _ in rivals)
        best = [(rule.text, weight) for rule, weight in rivals if rule.specificity == most]
        weights[name] = best[0][1]
        if len(best) > 1:
            clashes.setdefault(" and ".join(text for text, _ in best), name)
    problems += [f"{texts} name {name} alike: make one more specific" for texts, name in clashes.items()]
    if problems:
        raise InputError("--lam-map does not fit the pair", problems)
    return weights


def scaled(lam: str, weight: str) -> str:
    """Return λ · w exactly, written as canonical λs are, with as many decimals as it takes."""
    # The product has 24 digits at most, and Decimal keeps 28.
    return lam if weight == "1" else _plain(Decimal(lam) * Decimal(weight))


def _weight(rule: MapRule, layer: int | None, layers: list[int]) -> str:
    steps = len(rule.values) - 1
    if not steps or layer is None or len(layers) == 1:
        return _plain(rule.values[0])
    at = Decimal((layer - layers[0]) * steps) / (layers[-1] - layers[0])
    left = min(int(at), steps - 1)
    low, high = rule.values[left : left + 2]
    return _plain(round(low + (high - low) * (at - left), MAX_DECIMALS))


def _fits(part: str, own: str) -> bool:
    if own.isdigit() and (bounds := _RANGE.fullmatch(part)):
        first = int(bounds[1])
        last = first if bounds[2] is None else int(bounds[3]) if bounds[3] else int(own)
        return first <= int(own) <= last
    return own in _WORDS[part] if part in _WORDS else fnmatchcase(own, part)


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return next(
        (int(two) for one, two in itertools.pairwise(parts) if two.isdigit() and one in _WORDS["layers"]),
        None,
    )


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _shown(names: list[str]) -> str:
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
    return ", ".join(list(kinds)[:4]) + (", …" if len(kinds) > 4 else "")
