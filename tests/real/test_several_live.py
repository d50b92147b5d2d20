"""With several aligned checkpoints, a live engine has the bits of a fresh engine on the exported checkpoint."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from tests.support import engine_process
from tests.support.checkpoints import write_checkpoint
from tests.support.scored_requests import make_requests

INNER, AXIS = "dpo=0.5,sft=0.25", "dpo=0.35,sft=0"
PATH = (INNER, AXIS, "dpo=0,sft=0", "dpo=-0.5,sft=1", "dpo=0,sft=1", INNER)
FRESH = {INNER: 0, AXIS: 1}  # points with a fresh engine, and their places on the path


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {name: write_checkpoint(root / name, seed=seed) for seed, name in enumerate(("base", "dpo", "sft"))}


@pytest.fixture(scope="module")
def results(parents: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted. The axis is an export of base and dpo alone."""
    root = tmp_path_factory.mktemp("engines")
    requests = root / "requests.parquet"
    pq.write_table(make_requests()[0], requests)
    base, dpo, sft = (str(parents[name]) for name in ("base", "dpo", "sft"))
    exported = {}
    for name, aligned, lam in ((INNER, f"dpo={dpo},sft={sft}", INNER), (AXIS, dpo, "0.35")):
        exported[name] = root / f"merged-{len(exported)}"
        export_point(from_flags(None, base, aligned, None, None, lam), exported[name], "base", "5GB", print)
    jobs: dict[str, tuple[Any, Any, str, list[str | None]]] = {
        "live": (base, {"dpo": dpo, "sft": sft}, "auto", list(PATH)),
        **{name: (merged, None, "auto", [None]) for name, merged in exported.items()},
    }
    return engine_process.run(
        root,
        {
            name: {
                "base": base_of,
                "aligned": aligned_of,
                "settings": engine_process.settings().to_json(),
                "parents": tier,
                "requests": requests,
                "steps": [[lam, root / f"{number}-{step}.parquet"] for step, lam in enumerate(stops)],
            }
            for number, (name, (base_of, aligned_of, tier, stops)) in enumerate(jobs.items())
        },
    )


def assert_same(one: pa.Table, two: pa.Table) -> None:
    for column in ("request_id", "logprobs", "ranks", "top1_ids", "top1_logprobs"):
        assert one.column(column).equals(two.column(column)), column


@pytest.mark.parametrize("point", FRESH)
def test_live_is_bit_equal_to_a_fresh_engine_on_the_exported_checkpoint(results: dict[str, Any], point: str) -> None:
    (fresh,), _ = results[point]
    assert_same(results["live"][0][FRESH[point]], fresh)


def test_the_fast_route_is_taken_and_comes_back(results: dict[str, Any]) -> None:
    tables, counted = results["live"]
    assert {(step["route"], step["fallback"]) for step in counted} == {("resident mmap", "")}
    assert_same(tables[0], tables[-1])
    digests = [tuple(step["digests"]) for step in counted]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == len(PATH) - 1
    assert len({str(table.column("logprobs")) for table in tables}) == len(PATH) - 1
