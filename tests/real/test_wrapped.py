"""Language models that checkpoints wrap for several modalities agree with exports, and with transformers' wrappers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from contract import schemas
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from tests.support import engine_process
from tests.support.checkpoints import VOCAB
from tests.support.wrapped import KINDS, WINDOW, whole_wrapper_says, write_wrapped

LAM = "0.35"
PATH = ("0", LAM, "1", "0")
LENGTHS = (9, WINDOW + 1, 33, 70)


def requests() -> pa.Table:
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [3 + (17 * place + 29 * length) % (VOCAB - 12) for place in range(length)]
        rows.append((number, str(number), 0, ids, 1, 1, True))
    return pa.Table.from_pylist([dict(zip(schemas.REQUESTS.names, row, strict=True)) for row in rows], schemas.REQUESTS)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both parents, `export`, and `merged`, which is θ(0.35) made with none of the code under test."""
    root = tmp_path_factory.mktemp(kind)
    for seed, role in enumerate(("base", "aligned")):
        write_wrapped(root / role, kind, seed)
    source = from_flags(None, str(root / "base"), str(root / "aligned"), None, None, LAM)
    export_point(source, root / "export", "base", "5GB", lambda text: None)
    shutil.copytree(root / "base", root / "merged")
    one, two = (load_file(root / role / "model.safetensors") for role in ("base", "aligned"))
    merged = {name: torch.lerp(one[name].float(), two[name].float(), float(LAM)).to(one[name].dtype) for name in one}
    save_file(merged, root / "merged/model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def results(pair: Path) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted."""
    pq.write_table(requests(), pair / "requests.parquet")

    def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
        common = {"settings": engine_process.settings(max_model_len=128).to_json()}
        common |= {"requests": pair / "requests.parquet"}
        parents = {"base": pair / "base", "aligned": pair / "aligned"}
        for route in ("auto", "reload"):
            steps = [[lam, pair / f"{route}-{number}.parquet"] for number, lam in enumerate(PATH)]
            yield route, common | parents | {"parents": route, "steps": steps}
        fresh = {"base": pair / "export", "aligned": None, "parents": "auto"}
        yield "fresh", common | fresh | {"steps": [[None, pair / "fresh.parquet"]]}

    return engine_process.run(pair, dict(jobs()))


def test_live_scores_are_those_of_a_fresh_engine_on_the_export(results: dict[str, Any]) -> None:
    ((fresh,), _), (live, counted) = results["fresh"], results["auto"]
    assert fresh.num_rows == len(LENGTHS)
    assert live[PATH.index(LAM)].drop_columns(["lam", "point"]).equals(fresh.drop_columns(["lam", "point"]))
    assert {(step["route"], step["fallback"]) for step in counted} == {("resident mmap", "")}


def test_both_routes_give_the_same_tables(results: dict[str, Any]) -> None:
    (fast, _), (slow, counted) = results["auto"], results["reload"]
    assert {step["route"] for step in counted} == {"reload"}
    assert all(one.equals(other) for one, other in zip(fast, slow, strict=True))
    assert len({str(table["logprobs"].to_pylist()) for table in fast}) == len(set(PATH))


@pytest.mark.parametrize(("lam", "checkpoint"), [("0", "base"), (LAM, "merged"), ("1", "aligned")])
def test_scores_are_those_of_the_whole_wrapper_in_transformers(
    results: dict[str, Any], kind: str, pair: Path, lam: str, checkpoint: str
) -> None:
    live = results["auto"][0][PATH.index(lam)]["logprobs"].to_pylist()
    said = whole_wrapper_says(kind, pair / checkpoint, requests()["token_ids"].to_pylist())
    for ours, theirs in zip(live, said, strict=True):
        assert ours == pytest.approx(theirs, rel=0, abs=1e-4)
