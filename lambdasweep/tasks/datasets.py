"""This module reads data sets of a model hub as task files (`hf:ORG/DATASET[:CONFIG][:SPLIT]`); a folder's path may stand
for ORG/DATASET.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.errors import InputError
from lambdasweep.tasks.convert import ColumnMap, convert

PREFIX = "hf:"
_SPLITS = ("test", "validation", "train")  # the first of these that there is, where none is named
_FORM = re.compile(r"hf:(?P<name>[^:?]+)(:(?P<config>[^:?]*))?(:(?P<split>[^:?]+))?(\?(?P<columns>.*))?")


def read_dataset(source: str) -> bytes:
    """Return a data set as the bytes of a task file.

    Args:
        source: `hf:ORG/DATASET[:CONFIG][:SPLIT][?query=COLUMN,choices=COLUMN,gold=COLUMN]`; an empty CONFIG is the only one.

    Raises:
        InputError: the source is malformed, `datasets` is not installed, or the data set cannot be loaded or converted.
    """
    match = _FORM.fullmatch(source)
    if match is None:
        raise InputError(f"{source} is not hf:ORG/DATASET[:CONFIG][:SPLIT][?query=COLUMN,choices=COLUMN,gold=COLUMN]")
    columns = ColumnMap.parse(match["columns"]) if match["columns"] else None
    rows = _load(match["name"], match["config"] or None, match["split"])
    return as_jsonl(convert(rows, columns))


def as_jsonl(rows: Iterator[dict[str, Any]]) -> bytes:
    """Return rows as JSON, one a line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _load(name: str, config: str | None, split: str | None) -> list[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise InputError(f"tasks named {PREFIX}… need the datasets library: install lambdasweep[lm-eval]") from None
    datasets.disable_progress_bars()
    try:
        path = str(Path(name)) if Path(name).is_dir() else name
        if config and not split and config not in datasets.get_dataset_config_names(path):
            config, split = None, config  # hf:ORG/DATASET:SPLIT
        known = datasets.get_dataset_split_names(path, config)
        wanted = split or next((one for one in _SPLITS if one in known), known[0])
        if wanted not in known:
            raise InputError(f"{name} has no split {wanted}: give one of {', '.join(known)}")
        return list(datasets.load_dataset(path, config, split=wanted))
    except InputError:
        raise
    except Exception as error:  # the library, the hub and the network raise errors of many kinds
        words = (str(error).strip().splitlines() or [""])[0]
        hint = ""
        if "gated" in str(error).lower() or "401" in str(error) or "403" in str(error):
            hint = "; it may be gated: accept its terms on its page, and set HF_TOKEN to a token of your account"
        raise InputError(f"{PREFIX}{name} cannot be loaded ({type(error).__name__}: {words}){hint}") from None
