"""The engine and the scorer are tested on real vLLM.

The engines' processes are started once for all tests of this file. Some switch, and a fresh one scores each exported θ(λ).
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import engine_process
from tests.support.checkpoints import write_checkpoint
from tests.support.scored_requests import BLOCK, VOCAB, export, make_requests

LAMBDAS = ("0", "0.35", "1", "1.5")
# The path comes back, and each stop must give what going straight there gives.
PATH = ("0", "1.3", "0.35", "0.35", "1", "1.5", "0")


@dataclass(frozen=True)
class Case:
    """This is a pair and its engine. A live engine walks along PATH; a fresh one has the merged checkpoint for both."""

    name: str
    ranks: int = 1
    stages: int = 1
    step: int = 2048  # tokens; fewer make several steps, and a pipeline works on two steps at a time
    dtype: str = "float32"
    tied: bool = True
    parents: str = "auto"
    sabotage: bool = False
    misremembers: bool = False

    @property
    def kind(self) -> str:
        """Return what a fresh engine must share with this one."""
        return f"tp{self.ranks} pp{self.stages} {self.dtype} {'tied' if self.tied else 'untied'}"


LIVE = (
    Case("resident"),
    Case("resident tp2", ranks=2),
    Case("held untied bfloat16", dtype="bfloat16", tied=False, parents="device"),
    Case("pipeline", stages=2),
    Case("pipeline untied", stages=2, tied=False, step=256),
    Case("reload", parents="reload"),
    Case("sabotaged", sabotage=True),
    Case("misremembering", misremembers=True),
)
FRESH_AT = {"held untied bfloat16": LAMBDAS[1:], "pipeline": ("0.35", "1.5"), "pipeline untied": ("0.35",)}
FRESH = {(case.kind, lam): case for case in LIVE for lam in FRESH_AT.get(case.name, LAMBDAS)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, Path]]:
    """Return a tied and an untied pair."""
    found = {}
    for tied in (True, False):
        root = tmp_path_factory.mktemp("pair")
        found[tied] = (
            write_checkpoint(root / "base", seed=0, tie=tied),
            write_checkpoint(root / "aligned", seed=1, tie=tied),
        )
    return found


@pytest.fixture(scope="module")
def results(pairs: dict[bool, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for each engine the tables of its steps, and what it counted."""
    root = tmp_path_factory.mktemp("engines")
    requests = root / "requests.parquet"
    pq.write_table(make_requests()[0], requests)
    jobs: dict[str, dict[str, Any]] = {}

    def add(name: str, case: Case, base: Path, aligned: Path | None, parents: str, stops: Sequence[str | None]) -> None:
        settings = engine_process.settings(
            case.ranks, dtype=case.dtype, pipeline_parallel=case.stages, max_num_batched_tokens=case.step
        )
        jobs[name] = {
            "base": base,
            "aligned": aligned,
            "settings": settings.to_json(),
            "parents": parents,
            "sabotage": case.sabotage,
            "misremembers": case.misremembers,
            "requests": requests,
            "steps": [[lam, root / f"{name}-{step}.parquet"] for step, lam in enumerate(stops)],
        }

    for case in LIVE:
        add(case.name, case, *pairs[case.tied], case.parents, PATH)
    for (kind, lam), case in FRESH.items():
        merged = export(*pairs[case.tied], lam, root / f"merged-{case.tied}-{lam}")
        add(f"fresh {kind} {lam}", replace(case, sabotage=False, misremembers=False), merged, None, "auto", [None])
    return engine_process.run(root, jobs)


@pytest.mark.parametrize("case", LIVE, ids=[case.name for case in LIVE])
@pytest.mark.parametrize("lam", LAMBDAS)
def test_live_is_bit_equal_to_a_fresh_engine_on_the_merged_checkpoint(
    results: dict[str, Any], case: Case, lam: str
) -> None:
    if (case.kind, lam) not in FRESH:
        pytest.skip("no fresh engine is started there")
    ((fresh,), _) = results[f"fresh {case.kind} {lam}"]
    live, _ = results[case.name]
    for step, stop in enumerate(PATH):
        if stop == lam:
            for column in ("request_id", "logprobs", "ranks", "top1_ids", "top1_logprobs"):
                assert live[step].column(column).equals(fresh.column(column)), (step, column)


@pytest.mark.parametrize("case", LIVE, ids=[case.name for case in LIVE])
def test_the_route_is_the_fast_one_unless_it_is_wrong(results: dict[str, Any], case: Case) -> None:
    _, counted = results[case.name]
    wanted = {
        "resident": ("resident mmap", ""),
        "misremembering": ("resident mmap", ""),
        "resident tp2": ("resident mmap", ""),
        "pipeline": ("resident mmap", ""),
        "pipeline untied": ("resident mmap", ""),
        "held untied bfloat16": ("resident device", ""),
        "reload": ("reload", "--parents reload"),
        "sabotaged": ("reload", "the resident route gives other logprobs than vLLM's own loader at λ = 1 and λ = 0"),
    }
    assert {(step["route"], step["fallback"]) for step in counted} == {wanted[case.name]}


@pytest.mark.parametrize("case", LIVE, ids=[case.name for case in LIVE])
def test_digests_tell_the_points_apart(results: dict[str, Any], case: Case) -> None:
    _, counted = results[case.name]
    digests = [tuple(step["digests"]) for step in counted]
    assert all(len(found) == case.ranks * case.stages for found in digests)
    for (one, first), (two, second) in itertools.combinations(zip(PATH, digests, strict=True), 2):
        assert (first == second) == (one == two)


def test_each_stage_holds_its_own_layers(results: dict[str, Any]) -> None:
    """A digest is a sum over parameters, so that the digests of the stages add up to the whole model's."""
    whole, stages = (
        [step["digests"] for step in results[name][1]] for name in ("held untied bfloat16", "pipeline untied")
    )
    for (all_of_it,), (first, last) in zip(whole, stages, strict=True):
        assert (int(first, 16) + int(last, 16)) % 2**64 == int(all_of_it, 16)
        assert int(first, 16)
        assert int(last, 16)


def test_stages_give_the_numbers_of_one_rank(results: dict[str, Any]) -> None:
    for one, two in zip(results["resident"][0], results["pipeline"][0], strict=True):
        assert one.equals(two)


def test_digests_agree_between_engines(results: dict[str, Any]) -> None:
    """An engine that was asked to reload and one that fell back to it hold the same models."""
    reload, sabotaged = ([step["digests"] for step in results[name][1]] for name in ("reload", "sabotaged"))
    assert reload == sabotaged


def test_different_points_give_different_logprobs(results: dict[str, Any]) -> None:
    live, _ = results["resident"]
    for one, two in itertools.combinations(range(len(PATH)), 2):
        same = live[one].column("logprobs").equals(live[two].column("logprobs"))
        assert same == (PATH[one] == PATH[two]), (PATH[one], PATH[two])


@pytest.mark.parametrize("ranks", [1, 2])
def test_logprobs_ranks_and_top1_agree_with_transformers(
    results: dict[str, Any], pairs: dict[bool, tuple[Path, Path]], ranks: int
) -> None:
    from transformers import AutoModelForCausalLM

    requests, kinds = make_requests()
    model = AutoModelForCausalLM.from_pretrained(pairs[True][1], dtype=torch.float32).eval()
    live, _ = results["resident" if ranks == 1 else "resident tp2"]
    rows = {row["request_id"]: row for row in live[PATH.index("1")].to_pylist()}
    scored = {number for kind in ("letters", "full", "block", "shared", "longest") for number in kinds[kind]}
    assert rows.keys() == scored
    for request in requests.to_pylist():
        row = rows.get(request["request_id"])
        if row is None:
            continue
        ids, start = request["token_ids"], request["continuation_start"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        assert len(row["logprobs"]) == len(ids) - start
        for offset, token in enumerate(ids[start:]):
            expected = logprobs[start + offset - 1]
            assert row["logprobs"][offset] == pytest.approx(expected[token].item(), abs=2e-5)
            assert row["top1_ids"][offset] == expected.argmax().item()
            assert row["top1_logprobs"][offset] == pytest.approx(expected.max().item(), abs=2e-5)
            rank = int((expected > expected[token]).sum()) + 1
            assert row["ranks"][offset] == rank


def test_only_whole_blocks_before_the_first_row_that_counts_are_read_from_the_cache(results: dict[str, Any]) -> None:
    """The row that predicts the first token to be scored is always computed, also where it ends a block."""
    scored, counted = results["resident"]
    ids_scored = set(scored[0].column("request_id").to_pylist())
    rows = [row for row in make_requests()[0].to_pylist() if row["request_id"] in ids_scored]
    prompt_tokens = cached_tokens = 0
    for _, document in itertools.groupby(rows, key=lambda row: row["doc_id"]):
        earlier: list[list[int]] = []
        for row in document:
            ids = row["token_ids"]
            known = max([row["continuation_start"], *(shared(ids, other) for other in earlier)])
            if ids[:-1] not in [other[:-1] for other in earlier]:  # otherwise it is the same prompt
                prompt_tokens += len(ids) - 1
                cached_tokens += (known - 1) // BLOCK * BLOCK if earlier else 0
            earlier.append(ids)
    assert counted[0]["prompt_tokens"] == prompt_tokens
    assert counted[0]["cached_tokens"] == cached_tokens > 0


def shared(one: list[int], two: list[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def test_what_cannot_be_scored_is_quarantined_with_its_reason(results: dict[str, Any]) -> None:
    _, counted = results["resident"]
    _, kinds = make_requests()
    reasons = {row["request_id"]: row["reason"] for row in counted[0]["quarantine"]}
    assert reasons == {
        kinds["too long"][0]: "257 tokens are more than the 256 the engine takes",
        kinds["empty"][0]: "empty continuation",
        kinds["no context"][0]: "empty context: the first token has nothing to be predicted from",
        kinds["vocabulary"][0]: f"a token id outside the vocabulary of {VOCAB}",
    }


def test_a_unit_is_a_pure_function_of_the_unit(results: dict[str, Any]) -> None:
    """The second and the third visit to a λ come after other work; counts are equal too, so the cache started empty."""
    live, counted = results["resident"]
    first, last = 0, len(PATH) - 1
    assert PATH[first] == PATH[last]
    assert live[first].equals(live[last])
    assert json.dumps(counted[first]) == json.dumps(counted[last])


def test_what_overflows_at_some_points_only_is_quarantined_there(tmp_path: Path) -> None:
    """Every weight is finite at every λ. Beyond the parents the last norm's output is infinite, and logprobs are NaN."""
    base, aligned = (write_checkpoint(tmp_path / role, seed=0) for role in ("base", "aligned"))
    weights = load_file(aligned / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 1e37)
    save_file(weights, aligned / "model.safetensors", metadata={"format": "pt"})
    requests, kinds = make_requests()
    pq.write_table(requests, tmp_path / "requests.parquet")
    prompts = requests.select(["request_id", "doc_id", "token_ids"]).slice(0, 3)
    pq.write_table(prompts, tmp_path / "prompts.parquet")
    sampling = {"samples": 2, "temperature": 1.0, "max_tokens": 3, "stop_token_ids": [1]}
    sampled = {"prompts": str(tmp_path / "prompts.parquet"), "sampling": sampling}
    stops = ("0", "30", "1", "0", "30", "0")
    outputs = [tmp_path / f"{step}.parquet" for step in range(len(stops))]
    job = {
        "base": base,
        "aligned": aligned,
        "settings": engine_process.settings().to_json(),
        "parents": "auto",
        "requests": tmp_path / "requests.parquet",
        "steps": [[stops[step], outputs[step], *([sampled] if step > 3 else [])] for step in range(len(stops))],
    }
    ((tables, counted),) = engine_process.run(tmp_path, {"overflow": job}).values()
    fit = {number for kind in ("letters", "full", "block", "shared", "longest") for number in kinds[kind]}
    nan = {row["request_id"]: row["reason"] for row in counted[1]["quarantine"] if row["request_id"] in fit}
    assert nan == dict.fromkeys(sorted(fit), "the engine returned NaN or infinity")
    assert tables[1].num_rows == 0
    for step in (0, 2, 3):
        assert set(tables[step].column("request_id").to_pylist()) == fit
    assert tables[3].equals(tables[0])  # nothing of that λ stays behind
    # A sampler picks some token even where logits are NaN.
    assert [row["request_id"] for row in counted[4]["quarantine"]] == prompts["request_id"].to_pylist()
    assert {row["reason"] for row in counted[4]["quarantine"]} == {"the engine's logits were NaN or infinity"}
    assert (tables[4].num_rows, tables[5].num_rows, counted[5]["quarantine"]) == (0, 2 * prompts.num_rows, [])
