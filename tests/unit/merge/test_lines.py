"""Exports go other ways from base to aligned: the arc, weights on λ by module, and a vocabulary shared in part."""

from pathlib import Path

import pytest
import torch

from merge.interpolate import interpolated_tensors
from merge.line import Line
from merge.pair import open_pair
from tests.support.lines import MAP, is_shared, made, write_pair

CASES = {  # each case is a line, and whether the pair's head is tied to its embeddings
    "shared": (Line(vocab="shared"), True),
    "arc and map": (Line("slerp", MAP), False),
    "shared and map": (Line("linear", MAP, "shared"), True),
    "all": (Line("slerp", MAP, "shared"), False),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return the pair of each case."""
    return {
        name: write_pair(tmp_path_factory.mktemp("pair"), tied, is_shared(line)) for name, (line, tied) in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lam", ["0", "0.35", "1", "1.3", "-0.5"])
def test_tensors_on_disk_are_those_made_by_hand(pairs: dict[str, tuple[Path, Path]], case: str, lam: str) -> None:
    (base, aligned), (line, _) = pairs[case], CASES[case]
    want = made(base, aligned, line, lam)
    pair = open_pair(str(base), str(aligned), line=line)
    found = dict(interpolated_tensors(pair, lam))
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name
    assert pair.ends_at_aligned == (not line.lam_map)
