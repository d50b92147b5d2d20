"""A whole sweep over a language model that is wrapped for several modalities, through the command line, and its export."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from lambdasweep import open_run
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from tests.support.sweep_process import Sweep
from tests.support.wrapped import PROCESSOR, whole_wrapper_says, write_wrapped

LAM = "0.35"


def test_a_wrapper_is_swept_and_exported_whole(tmp_path: Path) -> None:
    for seed, role in enumerate(("base", "aligned")):
        write_wrapped(tmp_path / role, "gemma3", seed)
    rows = [{"query": f"Which is number {n}?", "choices": [f"one {n}", f"two {n}"], "gold": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    pair = ["--base", str(tmp_path / "base"), "--aligned", str(tmp_path / "aligned")]
    flags = ["--lambdas", f"0,{LAM},1", "--task", f"quiz={tmp_path / 'rows.jsonl'}", "--replicas", "1"]
    sweep = Sweep(out, [*pair, *flags, "--max-model-len", "128", "--engine", "kv_cache_memory_bytes=67108864"])
    assert sweep.wait() == 0, sweep.text()

    said: list[str] = []
    export_point(from_flags(str(out), None, None, None, None, LAM), tmp_path / "best", "base", "5GB", said.append)
    written, base = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "base"))
    assert written.keys() == base.keys()
    tower = "vision_tower"
    changed = [name for name in base if tower in name and not written[name].equal(base[name])]
    assert len(changed) == sum(tower in name for name in base) > 0
    assert (tmp_path / "best/preprocessor_config.json").read_text() == PROCESSOR

    requests = {row["request_id"]: row for row in pq.read_table(out / "requests/task=quiz.parquet").to_pylist()}
    table = open_run(out).tokens(lam=LAM).to_pylist()
    assert {row["request_id"] for row in table} == requests.keys()
    asked = [requests[row["request_id"]] for row in table]
    theirs = whole_wrapper_says("gemma3", tmp_path / "best", [row["token_ids"] for row in asked])
    for row, request, whole in zip(table, asked, theirs, strict=True):
        assert row["logprobs"] == pytest.approx(whole[request["continuation_start"] - 1 :], rel=0, abs=1e-4)
