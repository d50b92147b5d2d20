"""This module says which answers mean the same, by a model of sentence embeddings: those whose cosine is large enough.

An answer's embedding is the mean of the model's last hidden states over its tokens, as sentence-transformers' models with
mean pooling have it. The question is left out: answers behind the same words would all be alike. An answer that is longer
than the model takes means the same as no other. No threshold is right for every model and task: look at what one makes of
answers before you rely on it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lambdasweep.tasks.text_window import fitting, text_window

THRESHOLD = 0.9  # of the cosine, where none is given

_AT_ONCE = 32  # texts
_MODULES = {"Transformer", "Pooling", "Normalize"}  # of sentence-transformers; a cosine does not see the last one
_MODE = "pooling_mode_"
_OF_SEVERAL = {"text_config", "vision_config", "audio_config"}  # what a config has that is of several models


@dataclass(frozen=True, slots=True)
class Embedding:
    """A model of sentence embeddings."""

    directory: Path
    sha256: str
    """The hash of its files."""
    threshold: float
    """Answers mean the same where the cosine of their embeddings is at least this."""
    most_tokens: int | None = None
    """The most tokens of a text, where sentence-transformers has a bound of its own."""
    lower_case: bool = False
    """Texts are put in lower case first."""

    @property
    def recorded(self) -> str:
        """Return what a run says of it."""
        return f"{self.sha256}@{self.threshold:g}"

    def judge(self) -> Callable[[str, Sequence[tuple[str, str]]], list[bool]]:
        """Load the model, on the CPU; return what tells of pairs of answers whether they mean the same."""
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False, local_files_only=True)
        model = AutoModel.from_pretrained(
            self.directory, trust_remote_code=False, local_files_only=True, dtype="float32"
        )
        model.eval().requires_grad_(False)

        window = text_window(tokenizer, model.config, self.most_tokens)

        def embedded(texts: Sequence[str]) -> Any:
            inputs: Any = tokenizer(list(texts), padding=True, return_tensors="pt")
            mask = inputs["attention_mask"].unsqueeze(-1)
            hidden = model(**inputs).last_hidden_state
            means = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
            return means / np.linalg.norm(means, axis=1, keepdims=True)

        kept: dict[str, Any] = {}  # the embeddings of the answers to one question; None of those that are too long
        asked: str | None = None

        def same(question: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
            nonlocal asked
            if asked != question:
                kept.clear()
                asked = question
            if self.lower_case:
                pairs = [(one.lower(), two.lower()) for one, two in pairs]
            texts = list(dict.fromkeys(text for pair in pairs for text in pair if text not in kept))
            if texts:
                fits = fitting(tokenizer, window, texts)
                kept.update(dict.fromkeys(texts))
                texts = [text for text, fit in zip(texts, fits, strict=True) if fit]
            for at in range(0, len(texts), _AT_ONCE):
                some = texts[at : at + _AT_ONCE]
                kept.update(zip(some, embedded(some), strict=True))
            found = [(kept[one], kept[two]) for one, two in pairs]
            return [one is not None and two is not None and float(one @ two) >= self.threshold for one, two in found]

        return same


def is_of_embeddings(path: Path) -> bool:
    """Tell whether a directory holds a model of sentence embeddings: sentence-transformers', or a model without a head."""
    if (path / "modules.json").is_file():
        return True
    names = _read(path / "config.json", {}).get("architectures") or []
    return bool(names) and all(str(name).endswith("Model") and "Head" not in str(name) for name in names)


def embedding_model_of(path: Path, threshold: str | None, sha256: str) -> tuple[Embedding | None, list[str]]:
    """Return a model of sentence embeddings, and what is wrong with it or with its threshold, if anything.

    Args:
        path: its directory.
        threshold: of the cosine, as it was given; None takes `THRESHOLD`.
        sha256: the hash of its files.
    """
    try:
        least = THRESHOLD if threshold is None else float(threshold)
    except ValueError:
        least = 0.0
    if not 0 < least < 1:
        return None, [f"and answers mean the same from a cosine between 0 and 1 on: give DIRECTORY@{THRESHOLD}"]
    modules = _read(path / "modules.json", [])
    folder = path
    for one in modules:
        if str(one.get("type", "")).endswith("Transformer"):
            folder = path / str(one.get("path", ""))
    config = _read(folder / "config.json", {})
    if config.get("is_encoder_decoder") or _OF_SEVERAL & set(config):
        what = f"a {config.get('model_type', 'model')}, which is no single text model"
        return None, [f"{what}: give a model whose last hidden states are those of the text alone"]
    made = [kind for kind in (str(one.get("type", "")).rpartition(".")[2] for one in modules) if kind not in _MODULES]
    for one in modules:
        if str(one.get("type", "")).endswith("Pooling"):
            pool = _read(path / str(one.get("path", "")) / "config.json", {})
            made += [mode for mode in _modes(pool) or ["no pooling mode"] if mode != "mean"]
    if made:
        what = f"which does more than to take the mean over an answer's tokens ({', '.join(made)})"
        return None, [f"{what}: give a model that does no more"]
    # An older name of the file has the name of another architecture in it.
    own: dict[str, Any] = next((_read(file, {}) for file in sorted(folder.glob("sentence_*_config.json"))), {})
    most = own.get("max_seq_length")
    lower = bool(own.get("do_lower_case"))
    return Embedding(folder, sha256, least, most if isinstance(most, int) else None, lower), []


def _modes(pool: Mapping[str, Any]) -> list[str]:
    """Return how a pooling layer of sentence-transformers pools, by its config of either form."""
    if "pooling_mode" in pool:
        mode = pool["pooling_mode"]
        return [str(one) for one in mode] if isinstance(mode, list) else [str(mode)]
    named = (name.removeprefix(_MODE) for name, on in pool.items() if name.startswith(_MODE) and on)
    return [name.removesuffix("_tokens") for name in named]


def _read(path: Path, otherwise: Any) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise
