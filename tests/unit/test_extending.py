"""The examples of docs/extending.md are short, and do what the page says."""

import re
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


def example(section: str) -> dict[str, Any]:
    """Run the example of a section and return what it defines."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    assert code.count("\n") < 40
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
