"""A new method of lines is one module, asking for methods needs no torch, and texts follow from names."""

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibration.report.page import _formula
from contract.errors import InputError
from contract.formula import formula
from contract.records import LineRecord
from lambdasweep.config import load_config
from merge.interpolate import interpolated_tensors, tensor_rules
from merge.line import Line, check_line
from merge.methods import METHODS, Method
from merge.pair import open_pair
from tests.support.checkpoints import write_checkpoint


@dataclass(frozen=True, slots=True)
class Step:
    """This path is base before a threshold, and aligned behind it."""

    at: float

    def between(self, base: torch.Tensor, aligned: torch.Tensor, lam: float) -> torch.Tensor:
        return (base if lam < self.at else aligned).float()


STEP = Method("step", lambda base, aligned, left_out: Step(0.5), one_only="a step is between two")


def test_a_method_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = str(write_checkpoint(tmp_path / "base", 0)), str(write_checkpoint(tmp_path / "aligned", 1))
    monkeypatch.setitem(METHODS, "step", STEP)

    # The command line takes it, and refuses it where it does not go.
    flags = {
        "base": parents[0],
        "aligned": parents[1],
        "lambdas": "0,1",
        "out": str(tmp_path / "run"),
        "method": "step",
    }
    tasks = ["quiz=quiz.jsonl"]
    assert load_config(flags, tasks, [], [], None).method == "step"
    assert check_line(Line("step")) == []
    with pytest.raises(InputError, match="use linear, slerp, step"):
        load_config(flags | {"method": "stride"}, tasks, [], [], None)
    with pytest.raises(InputError, match="--method step takes one aligned checkpoint: a step is between two"):
        load_config(flags | {"aligned": f"a={parents[1]},b={parents[1]}"}, tasks, [], [], None)

    # Tensors go along it, and a report says so.
    pair = open_pair(*parents, None, None, Line("step"))
    rules = tensor_rules(pair)
    assert {rule.path for rule in rules.values()} == {Step(0.5)}
    for lam, parent in (("0.25", parents[0]), ("0.75", parents[1])):
        expected = load_file(Path(parent) / "model.safetensors")
        made = dict(interpolated_tensors(pair, lam))
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in made)
    assert _formula(LineRecord("step"), ()) == "θ(λ) = step(base, aligned; λ)"


def test_as_many_tensors_are_read_at_a_time_as_there_are_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads() + 3
    together = threading.Barrier(threads)  # it opens when all of them wait at it

    def path(*_: object) -> None:
        if not passed.is_set():
            together.wait(timeout=1500)
            passed.set()

    passed = threading.Event()
    monkeypatch.setitem(METHODS, "slow", Method("slow", path))
    parents = str(write_checkpoint(tmp_path / "base", 0)), str(write_checkpoint(tmp_path / "aligned", 1))
    tensor_rules(open_pair(*parents, None, None, Line("slow")), threads)
    assert passed.is_set()


@pytest.mark.parametrize(
    ("method", "lams", "is_weighed", "text"),
    [
        ("linear", {"": "0.5"}, False, "base + 0.5 · (aligned − base)"),
        ("linear", {"": "λ"}, True, "base + λ · w · (aligned − base)"),
        ("linear", {"dpo": "0.5", "sft": "1"}, False, "base + 0.5 · (dpo − base) + 1 · (sft − base)"),
        ("slerp", {"": "0.5"}, False, "slerp(base, aligned; 0.5)"),
        ("slerp", {"": "λ"}, True, "slerp(base, aligned; λ · w)"),
    ],
)
def test_the_text_of_a_formula(method: str, lams: dict[str, str], is_weighed: bool, text: str) -> None:
    assert formula(method, lams, is_weighed) == text


def test_methods_are_known_without_torch() -> None:
    code = "import sys; from merge.line import check_line; from merge.methods import METHODS; print(*METHODS); "
    code += "assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["linear", "slerp"]
