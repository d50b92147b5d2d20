"""Tests of lm-eval's tasks share these inputs: questions, a model without weights, and a way to lm-eval's evaluator.

lm-eval is imported inside functions, because tests are skipped where it is not installed.
"""

import functools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUESTIONS = [
    {"q": "Which is a metal?", "a": ["iron", "oxygen gas", "hé"], "gold": 0, "word": "iron"},
    {"q": "Which is wet", "a": ["sand", "water", "the salt"], "gold": 1, "word": "water"},
    {"q": "Trailing space ", "a": ["x", "y y", "z"], "gold": 2, "word": "z"},
    {"q": "Who? ", "a": ["him", "her", "them all"], "gold": 1, "word": "her"},
    {"q": "The sea and the", "a": ["in", "on", "an"], "gold": 0, "word": "in"},
    {"q": "A", "a": ["re", "es", "te"], "gold": 2, "word": "te"},
]
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "a",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
    ],
}


def write_yaml(
    root: Path, name: str, settings: Mapping[str, Any], rows: str = "rows.json", shots: str | None = "shots.json"
) -> Path:
    """Write the YAML file of a task over JSON files of the same folder, with examples from `shots`; return its path."""
    files = {"test": str(root / rows)} | ({"train": str(root / shots)} if shots else {})
    common: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    if shots:
        common["fewshot_split"] = "train"
    path = root / f"{name}.yaml"
    # JSON is YAML, and is written in no time.
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in (common | dict(settings)).items()))
    return path


def scores(tokens: list[int], start: int) -> tuple[list[float], list[int]]:
    """Return the model's log-probability and most likely token at each place from `start` on."""
    hashes = [zlib.crc32(np.array(tokens[: end + 1], "<i4").tobytes()) for end in range(start, len(tokens))]
    logprobs = [float(np.float32(-5 * (value % 10007) / 10007 - 0.01)) for value in hashes]
    return logprobs, [token + (value % 5 == 0) for token, value in zip(tokens[start:], hashes, strict=True)]


def model_of_lm_eval(tokenizer: Any, window: int) -> Any:
    """Return a model of lm-eval that scores tokens with `scores`; `asked` are the tokens and where each continuation starts.

    Args:
        tokenizer: the tokenizer of the transformers library.
        window: the tokens that a text without choices is cut into, and two more.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Model(TemplateLM):
        add_bos_token = None
        prefix_token_id = HFLM.prefix_token_id
        custom_prefix_token_id = None
        eot_token_id = 1
        tok_encode = HFLM.tok_encode

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.asked: list[tuple[list[int], int]] = []

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            found = []
            for _, context, continuation in requests:
                self.asked.append((context + continuation, len(context)))
                logprobs, top1 = scores(context + continuation, len(context))
                found.append((sum(logprobs), top1 == continuation))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            found = []
            for request in requests:
                (text,) = request.args
                windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, window - 2, 1)
                pairs = [(None, *make_disjoint_window(one)) for one in windows]
                found.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    return Model()


def evaluated(model: Any, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Return what lm-eval's own evaluator makes of the tasks in a folder; `arguments` are those of `simple_evaluate`."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        # lm-eval asks pip and the compiler, which takes seconds.
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        patch.setattr(evaluator, "get_git_commit_hash", lambda: None)
        found: dict[str, Any] | None = evaluator.simple_evaluate(
            model=model,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            **arguments,
        )
    assert found
    return found


@contextmanager
def cache_of_datasets(folder: Path) -> Iterator[None]:
    """Let the library datasets keep its cache in a folder of the test's own, and spare it and lm-eval what takes long.

    The hub is not told of loaded data sets. Files with the same rows are loaded once, and a template is compiled once.
    """
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))
        patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        patch.setattr(datasets, "load_dataset", _loaded_once(datasets.load_dataset))
        if find_spec("lm_eval"):
            from lm_eval.utils import env

            patch.setattr(env, "from_string", functools.cache(env.from_string))
        datasets.disable_progress_bars()
        yield


def _loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    def loaded(path: str, name: str | None = None, **more: Any) -> Any:
        files = more.get("data_files")
        if path != "json" or not isinstance(files, dict):
            return load(path, name, **more)
        rows = {split: Path(file).read_text(encoding="utf-8") for split, file in files.items()}
        key = json.dumps([name, more | {"data_files": rows}])
        if key not in known:
            known[key] = load(path, name, **more)
        return known[key]

    return loaded
