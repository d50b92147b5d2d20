"""Units that score again what was written: their requests, their place in the scheduler, and what is quarantined of them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contract import schemas
from contract.commit import commit_table
from contract.errors import InputError, SweepError
from contract.rundir import RunDir
from contract.units import Receipt, Unit, rescored_name
from ray_jobs import driver
from ray_jobs.replica import SweepSpec
from ray_jobs.rescoring import RescoreSource
from ray_jobs.scheduler import Scheduler
from ray_jobs.splitting import Splitter
from ray_jobs.weight_ledger import WeightLedger
from serve.engine import EngineScores, Prompt
from serve.settings import EngineSettings
from tests.support.tables import add_outputs, add_prompts

DOCUMENTS, SAMPLES = 6, 2
UNIT = Unit(rescored_name("sums", "0"), "0.5", 0, 0, DOCUMENTS, 1, at="0")


class _Engine:
    """Gives each token −(its row + 1) / 10, and NaN to the last output of one document."""

    vocab_size = 512
    settings = EngineSettings("cpu", "float32", 200)

    def __init__(self, broken: int) -> None:
        self._broken = broken

    def clear_prefix_cache(self) -> None:
        pass

    def score(self, prompts: list[Prompt]) -> EngineScores:
        rows = []
        for number, prompt in enumerate(prompts):
            ids = list(prompt.token_ids)
            rows += [(number, at, ids[at + 1]) for at in range(prompt.first_row, len(ids) - 1)]
            rows += [(number, len(ids) - 1, token) for token in prompt.last]
        prompt, row, token = (np.array(column) for column in zip(*rows, strict=True))
        longest = {tuple(one.token_ids[:1]): len(one.token_ids) for one in prompts}
        bad = [
            prompts[number].token_ids[0] == self._broken and len(prompts[number].token_ids) == longest[(self._broken,)]
            for number, _, _ in rows
        ]
        logprob = np.where(bad, np.nan, -(row + 1) / 10)
        return EngineScores(prompt, row, token, logprob, row + 1, token, logprob, 50, 20)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    add_prompts(run, "sums", DOCUMENTS, ("0", "0.5"), SAMPLES)
    outputs = {
        document: [("a", True, [-0.5] * (1 + sample + document), 0, False) for sample in range(SAMPLES)]
        for document in range(DOCUMENTS)
        if document != 3  # it was quarantined
    }
    add_outputs(run, "sums", "0.5", outputs, graded=False)
    return run


def prompts() -> pa.Table:
    columns = {
        "request_id": range(DOCUMENTS),
        "doc_id": [f"d{n}" for n in range(DOCUMENTS)],
        "prompt": [""] * DOCUMENTS,
        "token_ids": [[10 + n] * (n + 1) for n in range(DOCUMENTS)],
    }
    return pa.table(columns, schema=schemas.PROMPTS)


def source(run: RunDir) -> RescoreSource:
    return RescoreSource(str(run.root), "sums", "0", prompts(), "hash")


def test_outputs_are_scored_behind_their_prompts(run: RunDir) -> None:
    """A document with an output whose scores are no numbers is quarantined whole; what was not written is nowhere."""
    engine: Any = _Engine(broken=11)
    work = source(run).open(UNIT)
    found = work.run(engine, "0.5")
    assert found.quarantine.to_pylist() == [{"request_id": 1, "reason": "the engine returned NaN or infinity"}]
    rows = found.table.to_pylist()
    assert found.table.schema.equals(schemas.RESCORED)
    assert [(row["request_id"], row["sample"]) for row in rows] == [(d, s) for d in (0, 2, 4, 5) for s in (0, 1)]
    for row in rows:
        first, count = row["request_id"] + 1, 1 + row["sample"] + row["request_id"]
        assert row["logprobs"] == pytest.approx([-(first + at) / 10 for at in range(count)])
        assert (row["point"], row["under"], float(row["lam"])) == ("0.5", "0", 0.5)
        assert row["top1_ids"] == [5] * count  # the tokens of the outputs
    assert (found.requests, found.computed, found.cached) == (5, 30, 20)
    assert work.identity == {"requests_sha256": "hash", "task": "sums", "under": "0"}


def test_a_part_of_a_unit_and_its_offenders(run: RunDir) -> None:
    engine: Any = _Engine(broken=-1)
    part = source(run).open(dataclasses.replace(UNIT, first_row=2, end_row=5)).run(engine, "0.5")
    assert part.table["request_id"].unique().to_pylist() == [2, 4]
    whole = source(run).open(dataclasses.replace(UNIT, offenders=((2, "it kills"), (3, "it kills")))).run(engine, "0.5")
    assert whole.table["request_id"].unique().to_pylist() == [0, 1, 4, 5]
    assert whole.quarantine.to_pylist() == [{"request_id": 2, "reason": "it kills"}]  # 3 was never written
    splitter = Splitter(lambda unit: source(run).documents(unit))
    assert splitter.add(UNIT)
    half = splitter.next("replica")
    assert half is not None
    assert (half[0].at, half[0].lam, half[0].end_row) == ("0", "0.5", 3)


def test_files_lie_beside_the_others(run: RunDir) -> None:
    paths = [str(source(run).path(kind, UNIT).relative_to(run.root)) for kind in ("rescored", "quarantine", "receipts")]
    assert paths == [
        "rescored/task=sums@0/lambda=0.5/shard-00000.parquet",
        "quarantine/task=sums@0/lambda=0.5/shard-00000.parquet",
        "receipts/task=sums@0/lambda=0.5/shard-00000.json",
    ]
    assert rescored_name("sums", "dpo=0.5,sft=0.25") == "sums@dpo%3D0.5%2Csft%3D0.25"
    run.unit("generations", "sums", "0.5", 0).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="run the same command again, which writes it anew"):
        source(run).open(UNIT)
    run.unit("generations", "sums", "0.5", 0).unlink()
    with pytest.raises(InputError, match="is missing: run the same command again"):
        source(run).open(UNIT)


def test_a_replica_stays_where_its_engine_is() -> None:
    """All that is scored under one λ comes one after the other, whichever λs wrote it."""
    again = [
        Unit(rescored_name("sums", under), lam, shard, shard, shard + 1, 10 - shard, at=under)
        for under in ("0", "1")
        for lam in ("0.25", "0.5", "0.75")
        for shard in (0, 1)
    ]
    scheduler = Scheduler(again)
    seen = []
    while (unit := scheduler.next("replica")) is not None:
        seen.append(unit.engine_lam)
        scheduler.done("replica", unit)
    assert seen == ["0"] * 6 + ["1"] * 6


def test_weights_are_compared_where_the_engine_was() -> None:
    values: dict[str, Any] = dict.fromkeys(("requests", "quarantined", "tokens_scheduled", "tokens_cached"), 0)
    values |= dict.fromkeys(("switch_seconds", "score_seconds", "commit_seconds"), 0.0)
    values |= {
        "replica": "r",
        "host": "h",
        "hardware": "cpu",
        "route": "resident",
        "shard": 0,
        "weight_digests": ("a",),
    }
    written = Receipt(task="sums", lam="0.5", **values)
    again = Receipt(task="sums@0", lam="0.5", at="0", **(values | {"weight_digests": ("b",)}))
    ledger = WeightLedger()
    assert ledger.conflict(written) is None
    assert ledger.conflict(again) is None  # another λ
    other = dataclasses.replace(again, lam="1", weight_digests=("c",))
    conflict = str(ledger.conflict(other))
    assert "at λ = 0:" in conflict
    # What was computed there is named, and not what lies under other λs.
    assert "Delete what is under tokens/*/lambda=0, generations/*/lambda=0 and rescored/task=*@0, and" in conflict
    assert Receipt.from_json(again.to_json()) == again
    # The driver of a later command knows what was committed before.
    nothing: Any = None
    spec = SweepSpec("run", nothing, None, nothing, {}, receipts=(written, again))
    with pytest.raises(SweepError, match="at λ = 0:"):
        driver._Driver(spec, [], {}, None, nothing)._check_weights(other)
    with pytest.raises(SweepError, match="at λ = 0:"):
        driver._Driver(dataclasses.replace(spec, receipts=(again, other)), [], {}, None, nothing)


def test_damaged_tables_are_put_aside(run: RunDir) -> None:
    from contract.damage import put_aside

    path = run.unit("rescored", "sums@0", "0.5", 0)
    commit_table(path, schemas.RESCORED.empty_table())
    path.write_bytes(path.read_bytes()[:9])
    assert put_aside(run) == [
        "rescored/task=sums@0/lambda=0.5/shard-00000.parquet is cut short or overwritten (9 bytes)"
    ]
    assert not path.exists()
