"""The examples of docs/extending.md are short, and do what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibration import catalogue
from calibration.analyse import analyse
from calibration.metrics.predictions import predictions
from contract.rundir import RunDir
from merge.interpolate import Rule, interpolate
from merge.line import Line, check_line
from merge.methods import METHODS
from tests.support.paths import ROOT
from tests.support.tables import add_scores, add_task

PAGE = ROOT / "docs" / "extending.md"


def code_of(section: str) -> str:
    """Return the example of a section."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    assert code.count("\n") < 40
    return str(code)


def example(section: str) -> dict[str, Any]:
    """Run the example of a section and return what it defines."""
    code = code_of(section)
    found: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, section, "exec"), found)
    return found


def test_the_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = example("A metric of choice tasks")["ENTROPY"]
    monkeypatch.setitem(catalogue.METRICS, "choices", (*catalogue.METRICS["choices"], metric))
    run = RunDir(tmp_path / "run")
    add_task(run, "quiz", [2, 2, 3, 2], ("0",))
    add_scores(run, "quiz", "0", {request: [-0.3 * request] for request in range(9)})
    rows = analyse(run, resamples=10).metrics.to_pylist()
    (value,) = (
        row["value"] for row in rows if (row["metric"], row["split"], row["confidence"]) == ("entropy", "all", "sum")
    )
    gaps = np.array([[0.0, -0.3, -np.inf], [0.0, -0.3, -np.inf], [0.0, -0.3, -0.6], [0.0, -0.3, -np.inf]])
    probability = predictions(gaps, np.zeros(4, np.int64)).probability
    expected = [-sum(p * np.log(p) for p in row if p > 0) for row in probability]
    assert value == pytest.approx(np.mean(expected))
    assert "entropy_scaled" in {row["metric"] for row in rows}


SETTING = """
import tomllib
from pathlib import Path
from typer.testing import CliRunner
from contract.errors import InputError
from lambdasweep.cli import app
from lambdasweep.config import load_config

def problems(flags, text=""):
    file = Path("sweep.toml")
    file.write_text(text)
    try:
        return load_config(needed | flags, ["t=t.jsonl"], [], [], file)
    except InputError as error:
        return list(error.problems)

needed = {"base": "a", "aligned": "b", "lambdas": "0,1", "out": "run"}
for command in ("run", "plan", "score"):
    said = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    assert "--tries N How often a unit" in said and "[default: 3]" in said, said
    assert "--order [coarse|ascending] Which λs come first. [default: coarse]" in said, said
assert "--tries" not in CliRunner().invoke(app, ["export", "--help"]).output
said = CliRunner().invoke(app, ["run", "--tries", "x"])
assert said.exit_code == 2 and "--tries" in said.output, said.output

config = problems({})
assert (config.tries, config.order) == (3, "coarse")
config = problems({"order": "ascending"}, "tries = 5\\norder = 'coarse'")
assert (config.tries, config.order) == (5, "ascending")
assert problems({"tries": 0, "order": "up"}) == ["--tries is 0: give 1 or more", "--order is 'up': use coarse, ascending"]
assert problems({}, "tries = 'x'\\norder = 3") == [
    "sweep.toml: tries is 'x': give a whole number", "sweep.toml: order is 3: give a string"
]
"""


@pytest.mark.slow
def test_the_setting(tmp_path: Path) -> None:
    """The example runs in a process of its own, where the fields are there before anything reads them."""
    code = code_of("A setting") + SETTING
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_line(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    method = example("A line between the parents")["METHOD"]
    monkeypatch.setitem(METHODS, method.name, method)
    assert check_line(Line("ramp")) == []
    one, two = (torch.randn(9, 5, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    rule = Rule(path=method.path(one, two, ()))
    assert torch.equal(interpolate(one, two, "0.2", rule=rule), one)
    assert interpolate(one, two, "1", rule=rule) is two
    for lam in (0.4, 0.9, 1.6):
        share = (lam - 0.25) / 0.75
        exact = one.double() + share * (two.double() - one.double())
        made = interpolate(one, two, str(lam), rule=rule)
        assert made.dtype == dtype
        bound = 2.0**-24 * (3 * (share * (two.double() - one.double())).abs() + exact.abs())
        bound += 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * exact.abs()
        assert bool(((made.double() - exact).abs() <= bound * (1 + 2.0**-20)).all())


def test_the_architecture() -> None:
    example("An architecture")
