"""Real vLLM takes parents that are not alike on the disk: adapters, LM heads in one of them, two dtypes.

Each case has a live engine and fresh engines on exports; where the ends can be had without ours, from transformers and PEFT,
their logprobs must agree, too.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from contract import schemas
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from tests.support import engine_process
from tests.support.adapters import write_adapter
from tests.support.checkpoints import VOCAB, write_checkpoint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Model = Any


@dataclass(frozen=True)
class Case:
    """This is a pair, with the points that its engine goes to, and a reference for the last of them."""

    name: str
    path: tuple[str, ...]
    fresh: tuple[str, ...]  # the points that are exported for a fresh engine
    end: Callable[[Path], Model]
    parents: str = "auto"


def with_head(directory: Path, seed: int, flag: bool, head: bool, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a checkpoint whose flag says that its head is tied, or not, whatever its tensors say."""
    write_checkpoint(directory, seed=seed, dtype=dtype)
    weights = load_file(directory / "model.safetensors")
    if head:
        weights[HEAD] = weights[EMBEDDING].flip(0).contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": flag}))


def loaded(directory: Path) -> Model:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def merged(root: Path) -> Model:
    """Write base with the one adapter in it, as PEFT makes it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded(root / "base"), root / "aligned").merge_and_unload()


def write_parents(root: Path, case: str) -> str:
    """Write the parents of a case; return what --aligned says."""
    base, aligned = root / "base", root / "aligned"
    if case == "two adapters":
        write_checkpoint(base, seed=0)
        for seed, name in enumerate(("dpo", "sft"), 1):
            write_adapter(root / name, base, seed, r=3, lora_alpha=6, target_modules=["o_proj", "gate_proj"])
        return f"dpo={root / 'dpo'},sft={root / 'sft'}"
    if case.startswith("adapter"):
        write_checkpoint(base, seed=0, dtype=torch.float32, tie=False)
        config: dict[str, Any] = {"use_rslora": True, "rank_pattern": {"down_proj": 5}, "modules_to_save": ["lm_head"]}
        write_adapter(aligned, base, 1, r=4, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"], **config)
    elif case == "both tie, and one has a head":
        with_head(base, 0, flag=True, head=False)
        with_head(aligned, 1, flag=True, head=True, dtype=torch.float32)
    else:
        with_head(base, 0, flag=True, head=True)
        with_head(aligned, 1, flag=False, head=True)
    return str(aligned)


INNER = "dpo=0.5,sft=0.25"
CASES = (
    Case("adapter", ("0", "0.35", "1"), ("0.35", "1"), merged),
    Case("adapter, reload", ("0.35", "1"), (), merged, "reload"),
    Case("two adapters", ("dpo=0,sft=1", INNER), (INNER,), lambda root: None, "device"),
    Case("both tie, and one has a head", ("0", "0.35", "1"), ("0.35",), lambda root: loaded(root / "aligned")),
    Case("heads of their own", ("1", "0.35", "0"), ("0.35",), lambda root: loaded(root / "base"), "device"),
)
BY_NAME = {case.name: case for case in CASES}


def requests() -> pa.Table:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(6):
        ids = torch.randint(3, VOCAB, (20 + 9 * number,), generator=generator).tolist()
        rows.append((number, str(number), 0, ids, len(ids) - 5, 1, True))
    return pa.Table.from_pylist([dict(zip(schemas.REQUESTS.names, row, strict=True)) for row in rows], schemas.REQUESTS)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    found = {}
    for case in CASES:
        root = tmp_path_factory.mktemp("parents")
        found[case.name] = root, write_parents(root, case.name)
    return found


@pytest.fixture(scope="module")
def results(roots: dict[str, tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted."""
    work = tmp_path_factory.mktemp("engines")
    pq.write_table(requests(), work / "requests.parquet")
    common = {"settings": engine_process.settings().to_json(), "requests": work / "requests.parquet"}
    jobs: dict[str, dict[str, Any]] = {}
    for case in CASES:
        root, aligned = roots[case.name]
        source = from_flags(None, str(root / "base"), aligned, None, None, case.path[-1])
        steps = [[lam, work / f"{len(jobs)}-{step}.parquet"] for step, lam in enumerate(case.path)]
        several = dict(source.aligned) if len(source.aligned) > 1 else aligned
        jobs[case.name] = common | {
            "base": root / "base",
            "aligned": several,
            "parents": case.parents,
            "steps": steps,
        }
        for lam in case.fresh:
            out = work / f"export-{len(jobs)}"
            export_point(from_flags(None, str(root / "base"), aligned, None, None, lam), out, "base", "5GB", print)
            step = [[None, work / f"{len(jobs)}-0.parquet"]]
            jobs[f"{case.name} {lam}"] = common | {"base": out, "aligned": None, "parents": "auto", "steps": step}
    return engine_process.run(work, jobs)


@pytest.mark.parametrize(("name", "lam"), [(case.name, lam) for case in CASES for lam in case.fresh])
def test_live_is_bit_equal_to_a_fresh_engine_on_the_export(results: dict[str, Any], name: str, lam: str) -> None:
    ((fresh,), _) = results[f"{name} {lam}"]
    live = results[name][0][BY_NAME[name].path.index(lam)]
    for column in ("request_id", "logprobs", "ranks", "top1_ids", "top1_logprobs"):
        assert live.column(column).equals(fresh.column(column)), column


@pytest.mark.parametrize("name", BY_NAME)
def test_the_route_is_the_expected_one(results: dict[str, Any], name: str) -> None:
    tables, counted = results[name]
    parents = BY_NAME[name].parents
    route = {"auto": "resident mmap", "device": "resident device", "reload": "reload"}[parents]
    assert {step["route"] for step in counted} == {route}
    assert len({str(table.column("logprobs")) for table in tables}) == len(tables)


def test_both_routes_give_the_same_numbers(results: dict[str, Any]) -> None:
    resident, reload = results["adapter"][0][1:], results["adapter, reload"][0]
    for one, two in zip(resident, reload, strict=True):
        assert one.column("logprobs").equals(two.column("logprobs"))


@pytest.mark.parametrize("name", [case.name for case in CASES if case.name != "two adapters"])
def test_the_end_is_what_others_make_of_it(
    results: dict[str, Any], roots: dict[str, tuple[Path, str]], name: str
) -> None:
    model = BY_NAME[name].end(roots[name][0])
    found = results[name][0][-1].column("logprobs").to_pylist()
    for row, said in zip(requests().to_pylist(), found, strict=True):
        ids = torch.tensor([row["token_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0].double().log_softmax(-1)
        start = row["continuation_start"]
        wanted = [logits[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])]
        assert said == pytest.approx(wanted, abs=1e-4)
