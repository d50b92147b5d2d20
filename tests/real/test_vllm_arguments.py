"""Further arguments of vLLM are held against vLLM's own configuration, before an engine starts."""

import sys
from typing import Any

import pytest

from lambdasweep.demo import ALIGNED, BASE
from merge.line import Line
from serve.settings import EngineSettings
from serve.vllm_arguments import argument_problems
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"foo": "bar", "max_num_seq": 3}, ["--engine foo: vLLM has no such argument", "did you mean max_num_seqs?"]),
        ({"kv_cache_dtype": "float2"}, ["--engine cannot be used; vLLM says: "]),
        ({"seed": 3}, []),
    ],
)
def test_what_vllm_says(extra: dict[str, Any], says: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", warm_python())
    settings = EngineSettings("cpu", "float32", 256, threads=1, kv_cache_bytes=1 << 28, extra=extra)
    found = argument_problems(BASE, ALIGNED, settings, "auto", Line())
    assert len(found) == len(says)
    assert all(words in problem for words, problem in zip(says, found, strict=True))
