"""The command line sweeps a grid of points over two aligned checkpoints, which is grown and continued."""

import json
from pathlib import Path

import pytest

from contract.commit import read_identity
from contract.points import parse_points
from contract.rundir import RunDir
from lambdasweep import open_run
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from tests.support.checkpoints import write_checkpoint
from tests.support.sweep_process import Sweep, committed

POINTS = parse_points("dpo=0:1:0.5,sft=0,0.5", ["dpo", "sft"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("base", "dpo", "sft")):
        write_checkpoint(root / name, seed=seed)
    rows = [{"query": f"Which is number {n}?", "choices": [f"one {n}", f"two {n}"], "gold": n % 2} for n in range(60)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "sweep.toml").write_text(
        'base = "base"\naligned = {sft = "sft", dpo = "dpo"}\nmax_model_len = 128\nreplicas = 1\n'
        "[engine]\nkv_cache_memory_bytes = 67108864\n"
        '[[task]]\nname = "quiz"\nfile = "rows.jsonl"\n'
    )
    return root


def test_a_grid_of_points_is_swept_and_goes_on(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Sweep(out, ["--config", str(inputs / "sweep.toml"), "--lambdas", "sft=0,dpo=0,1"])
    assert first.wait() == 0, first.text()
    run = RunDir(out)
    assert run.all_committed().keys() == {("quiz", "dpo=0,sft=0"), ("quiz", "dpo=1,sft=0")}
    before = {name: data for name, data in committed(out).items() if name.startswith(("tokens", "requests"))}

    flags = ["--aligned", f"dpo={inputs / 'dpo'},sft={inputs / 'sft'}", "--lambdas", "dpo=0:1:0.5,sft=0:0.5:0.5"]
    second = Sweep(out, ["--config", str(inputs / "sweep.toml"), *flags])
    assert second.wait() == 0, second.text()
    assert "2 of 6 units are committed already; 4 are left" in second.text()
    assert run.plan()["tasks"]["quiz"]["lambdas"] == list(POINTS)
    assert run.all_committed() == {("quiz", point): {0} for point in POINTS}
    after = committed(out)
    assert {name: after[name] for name in before} == before

    sweep = run.sweep()
    assert sweep["pair"].keys() == {"base", "aligned.dpo", "aligned.sft"}
    identity = read_identity(run.unit("tokens", "quiz", POINTS[-1], 0))
    assert identity["lam"] == POINTS[-1]
    for role, parent in sweep["pair"].items():
        assert identity[role] == parent["fingerprint"]
    table = open_run(out).tokens(lam="sft=0.5,dpo=1")
    assert set(table["point"].to_pylist()) == {"dpo=1,sft=0.5"}
    logprobs = {str(open_run(out).tokens(lam=point)["logprobs"]) for point in POINTS}
    assert len(logprobs) == len(POINTS)

    star = json.loads(run.frontier_json.read_text())["tasks"][0]["chosen"]["point"]
    assert f"quiz: {star} (" in second.text()
    assert run.index_html.is_file()
    said: list[str] = []
    export_point(from_flags(str(out), None, None, None, None, None), tmp_path / "best", "aligned", "5GB", said.append)
    assert f"λ = {star}: λ* of task quiz" in said
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"# θ({star}) of base, dpo and sft" in card
    assert "| quiz | accuracy |" in card

    wrong = Sweep(out, ["--config", str(inputs / "sweep.toml"), "--aligned", str(inputs / "dpo"), "--lambdas", "0,1"])
    assert wrong.wait() == 2
    assert "pair.aligned.sft was " in wrong.text()
