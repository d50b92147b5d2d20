"""Real vLLM goes other ways from base to aligned: the arc, weights on λ by module, and a vocabulary shared in part.

Each case has a live engine and, for each λ, a fresh engine on a θ(λ) that is made here with none of the code under test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from contract import schemas
from merge.line import Line
from tests.support import engine_process
from tests.support.checkpoints import VOCAB
from tests.support.lines import MAP, is_shared, made, write_pair

PATH = ("0", "1.3", "0.35", "1", "0")


@dataclass(frozen=True)
class Case:
    """This is an engine over a line."""

    name: str
    line: Line
    ranks: int
    tied: bool
    dtype: str
    parents: str
    route: str
    fresh: tuple[str, ...]  # the λs of its fresh engines; all three kinds of points are met in one case or another


CASES = (
    Case("shared", Line(vocab="shared"), 1, True, "float32", "auto", "resident mmap", ("0", "0.35")),
    Case("arc and map", Line("slerp", MAP), 1, False, "bfloat16", "device", "resident device", ("0.35", "1")),
    Case(
        "shared and map, two ranks",
        Line("linear", MAP, "shared"),
        2,
        True,
        "float32",
        "mmap",
        "resident mmap",
        ("0.35",),
    ),
    Case("all, two ranks", Line("slerp", MAP, "shared"), 2, False, "bfloat16", "device", "resident device", ("0.35",)),
    Case("all, reload", Line("slerp", MAP, "shared"), 2, False, "bfloat16", "reload", "reload", ()),
)
IDS = [case.name for case in CASES]


def requests() -> pa.Table:
    generator = torch.Generator().manual_seed(9)
    rows = []
    for number in range(8):
        ids = torch.randint(3, VOCAB, (30 + 7 * number,), generator=generator).tolist()
        if number % 2:
            ids[5], ids[-2], ids[-1] = 17, 331, VOCAB - 1 - number
        rows.append((number, str(number), 0, ids, len(ids) - 4, 1, True))
    return pa.Table.from_pylist([dict(zip(schemas.REQUESTS.names, row, strict=True)) for row in rows], schemas.REQUESTS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], tuple[Path, Path]]:
    """Return pairs by whether they are tied, and whether their vocabulary is shared in part only."""
    kinds = {(case.tied, is_shared(case.line)) for case in CASES}
    return {kind: write_pair(tmp_path_factory.mktemp("pair"), *kind) for kind in kinds}


@pytest.fixture(scope="module")
def results(
    pairs: dict[tuple[bool, bool], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted."""
    root = tmp_path_factory.mktemp("engines")
    pq.write_table(requests(), root / "requests.parquet")

    def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
        for case in CASES:
            base, aligned = pairs[case.tied, is_shared(case.line)]
            settings = {
                "settings": engine_process.settings(case.ranks, dtype=case.dtype).to_json(),
                "requests": root / "requests.parquet",
            }

            def steps(name: str, stops: tuple[str | None, ...]) -> list[Any]:
                return [[lam, root / f"{name}-{step}.parquet"] for step, lam in enumerate(stops)]

            live = {"base": base, "aligned": aligned, "line": case.line.to_json(), "parents": case.parents}
            yield case.name, settings | live | {"steps": steps(case.name, PATH)}
            for lam in case.fresh:
                merged = root / f"merged-{case.name}-{lam}"
                merged.mkdir()
                for file in aligned.iterdir():
                    if file.suffix == ".json":
                        (merged / file.name).write_bytes(file.read_bytes())
                save_file(made(base, aligned, case.line, lam), merged / "model.safetensors", metadata={"format": "pt"})
                name = f"{case.name} {lam}"
                yield (
                    name,
                    settings | {"base": merged, "aligned": None, "parents": "auto", "steps": steps(name, (None,))},
                )

    return engine_process.run(root, dict(jobs()))


@pytest.mark.parametrize(
    ("case", "lam"),
    [(case, lam) for case in CASES for lam in case.fresh],
    ids=lambda value: getattr(value, "name", value),
)
def test_live_is_bit_equal_to_a_fresh_engine(results: dict[str, Any], case: Case, lam: str) -> None:
    ((fresh,), _) = results[f"{case.name} {lam}"]
    assert fresh.num_rows == requests().num_rows
    live, _ = results[case.name]
    for step in [step for step, stop in enumerate(PATH) if stop == lam]:
        assert live[step].drop_columns(["lam", "point"]).equals(fresh.drop_columns(["lam", "point"]))


def test_both_routes_give_the_same_tables(results: dict[str, Any]) -> None:
    resident, reload = (results[name][0] for name in ("all, two ranks", "all, reload"))
    assert all(one.equals(other) for one, other in zip(resident, reload, strict=True))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_route_is_the_fast_one_and_digests_tell_the_points_apart(results: dict[str, Any], case: Case) -> None:
    live, counted = results[case.name]
    reason = "--parents reload" if case.parents == "reload" else ""
    assert {(step["route"], step["fallback"]) for step in counted} == {(case.route, reason)}
    digests = [tuple(step["digests"]) for step in counted]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == len(PATH) - 1
    assert len({str(table.column("logprobs").to_pylist()) for table in live}) == len(PATH) - 1
