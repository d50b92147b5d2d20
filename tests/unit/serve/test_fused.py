"""The fused pass of the switch runs in Triton's interpreter, and on a GPU where there is one.

The interpreter rounds products of a fused multiply-add and converts to bfloat16 otherwise than a GPU, so interpolated
elements may be one unit in the last place off there; what was written, and its digest, must agree to the bit everywhere.
"""

import functools
import importlib
import json
import os
import sys
from typing import Any

import pytest
import torch

from merge.digest import WeightDigest, parameter_key, takes_words
from merge.interpolate import theta
from serve.switch import fused
from tests.support.forked import fork, joined

LAMBDAS = ("0", "1", "0.35", "0.5", "0.65", "1.3", "-0.7")
SHAPES = ((3, 4096), (5, 12), (2, 5000), (2, 3, 8), (1, 16), (9, 1), (7, 3))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FIRST_ROW = 11


def cases(device: torch.device) -> list[dict[str, Any]]:
    """Run every case; say how far each is from the formula, and whether digests agree."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for dtype in DTYPES:
        for shape in SHAPES:
            base, aligned = (torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2))
            base.view(-1)[0] = aligned.view(-1)[1] = -0.0  # only a copy keeps −0.0
            base.view(-1)[1] = 1
            words = takes_words(dtype.itemsize, shape[-1], ())
            for lam in LAMBDAS:
                exact, out = theta([base, aligned], lam), torch.full_like(base, 7.0)
                mine, wanted = WeightDigest(device), WeightDigest(device)
                fused.write(base, aligned, lam, out, mine, parameter_key("x"), FIRST_ROW, words)
                steps = [step // shape[-1] for step in out.stride()[:-1]]
                wanted.add(out, parameter_key("x"), FIRST_ROW, steps, words)
                # The difference is in units of the dtype's resolution at the parents' size.
                scale = torch.finfo(dtype).eps * (base.float().abs() + aligned.float().abs())
                error = float(((out.float() - exact.float()).abs() / scale).max())
                same = torch.equal(out.view(torch.uint8), exact.view(torch.uint8))
                digests = mine.hex() == wanted.hex()
                found.append(
                    {"case": f"{dtype} {shape} {lam}", "lam": lam, "error": error, "same": same, "digests": digests}
                )
    return found


def interpret() -> None:
    """Print what came out of the cases in Triton's interpreter, which is chosen when Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton" and "._C" not in name]:
        del sys.modules[name]  # vLLM has imported it perhaps; what is compiled is imported once only
    interpreter = importlib.import_module("triton.runtime.interpreter")
    # Each call would put the interpreter's functions into Triton's language anew, which takes a quarter of the time.
    interpreter._LangPatchScope.restore = lambda scope: None
    interpreter._patch_lang = functools.cache(interpreter._patch_lang)
    fused._kernel = None
    print(json.dumps(cases(torch.device("cpu"))))


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the cases in a process of their own: in this one Triton goes on compiling."""
    pytest.importorskip("triton")
    log = tmp_path_factory.mktemp("interpreted") / "log"
    status = joined(fork(interpret, log), log)
    said = log.read_text()
    assert status == 0, said[-3000:]
    rows: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
    return rows


@pytest.mark.slow
def test_the_digest_is_of_what_was_written(interpreted: list[dict[str, Any]]) -> None:
    assert len(interpreted) == len(DTYPES) * len(SHAPES) * len(LAMBDAS)
    assert [row["case"] for row in interpreted if not row["digests"]] == []


@pytest.mark.slow
def test_a_parent_is_copied_to_the_bit(interpreted: list[dict[str, Any]]) -> None:
    assert [row["case"] for row in interpreted if row["lam"] in ("0", "1") and not row["same"]] == []


@pytest.mark.slow
def test_an_interpolated_element_is_the_formula_but_for_the_interpreter_s_rounding(
    interpreted: list[dict[str, Any]],
) -> None:
    assert [row for row in interpreted if not row["error"] <= 2] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_lerp_to_the_bit() -> None:
    assert [row for row in cases(torch.device("cuda")) if not (row["same"] and row["digests"])] == []
