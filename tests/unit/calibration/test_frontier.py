"""The frontier, λ* and the answer, worked out by hand."""

import json

import numpy as np
import pytest

from calibration.frontier.curve import Curve, macro_average
from calibration.frontier.frontier import frontier, frontiers, write_frontiers
from calibration.frontier.lambda_star import choose, choose_in_resamples
from contract.rundir import RunDir
from tests.support.curves import R, curve, track


def test_the_frontier_by_hand():
    found = frontier(curve(["0", "0.5", "1", "1.5"], [0.60, 0.65, 0.63, 0.55], [0.05, 0.10, 0.20, 0.30]))
    assert [point.on_frontier for point in found.points] == [True, True, False, False]
    assert [point.membership for point in found.points] == [1, 1, 0, 0]
    half, beyond = found.points[1], found.points[3]
    assert (half.gains["aligned"].dominates, half.gains["aligned"].dominated) == (True, False)
    assert (half.gains["base"].dominates, half.gains["base"].dominated) == (False, False)
    assert all(gain.dominated and not gain.dominates for gain in beyond.gains.values())
    assert half.gains["aligned"].dominates_share == 1
    assert half.gains["aligned"].accuracy.value == pytest.approx(0.02)
    assert half.gains["aligned"].error.value == pytest.approx(-0.1)
    # Up to accuracy 0.6 the error 0.05 is to be had, up to 0.65 the error 0.1.
    assert found.hypervolume.value == pytest.approx(0.6 * 0.95 + 0.05 * 0.9)
    assert set(found.points[0].gains) == {"aligned"}  # no parent is compared with itself
    assert found.points[0].p_accuracy is None


def test_membership_is_how_often_a_point_is_on_the_frontier():
    near = curve(["0", "0.5", "1"], [0.6, 0.6, 0.2], [0.1, 0.1, 0.9], noise=0.02)
    shares = [point.membership for point in frontier(near).points]
    # Two exchangeable points: a quarter of the time either dominates the other.
    assert shares[:2] == pytest.approx([0.75, 0.75], abs=0.08)
    assert shares[2] == 0
    assert frontier(near).points[0].on_frontier
    assert frontier(near).points[1].on_frontier  # equal points do not dominate each other


def test_of_the_accurate_ones_the_best_calibrated_is_chosen():
    made = track([0.60, 0.64, 0.65, 0.62], [0.01, 0.05, 0.10, 0.02], noise=0.01)
    # The standard error of a difference is about 0.014: 0.64 is within, 0.62 is not.
    assert choose(made) == 1
    assert choose(track([0.60, 0.64, 0.65, 0.62], [0.01, 0.05, 0.10, 0.02])) == 2  # nothing varies: the most accurate
    assert choose(track([0.6, 0.6, 0.6], [0.2, 0.1, 0.1])) == 1  # of equals the lowest
    # What varies together is not told apart the less for it.
    assert choose(track([0.60, 0.64, 0.65, 0.62], [0.01, 0.05, 0.10, 0.02], noise=0.001, shared=0.05)) == 2


def test_the_choice_is_repeated_in_every_resample():
    made = track([0.60, 0.64, 0.65, 0.40], [0.10, 0.05, 0.06, 0.0], noise=0.01)
    places = choose_in_resamples(made)
    assert len(places) == R
    spread = np.std(made.resampled_accuracy[:, None] - made.resampled_accuracy[None], axis=2, ddof=1)
    for r in range(0, R, 37):
        accuracy, error = made.resampled_accuracy[:, r], made.resampled_error[:, r]
        best = int(np.argmax(accuracy))
        close = [i for i in range(4) if accuracy[best] - accuracy[i] <= spread[i, best]]
        assert places[r] == min(close, key=lambda i: error[i])
    assert 3 not in places


def test_it_is_chosen_on_one_half_and_measured_on_the_other():
    select, report = track([0.5, 0.7, 0.5], [0.3, 0.1, 0.3]), track([0.5, 0.55, 0.6], [0.2, 0.15, 0.25])
    found = frontier(Curve("quiz", "ece_width15", "sum", ("0", "0.5", "1"), (50,) * 3, select, report))
    assert found.chosen.lam == "0.5"
    assert found.answer.startswith("λ = 0.5: accuracy −5.0 points over aligned, ECE 0.25 → 0.15")


def test_the_answer_of_a_clear_case():
    lambdas = ["0", "0.25", "0.5", "0.75", "1"]
    # 0.25 and 0.5 are alike, and better than both parents by many standard errors (0.0014).
    clear = curve(lambdas, [0.60, 0.659, 0.66, 0.63, 0.64], [0.10, 0.0505, 0.05, 0.12, 0.18], noise=0.001)
    found = frontier(clear)
    assert found.chosen.lam == "0.5"
    assert found.answer == (
        "λ = 0.5 (0.25–0.5): accuracy +2.0 points over aligned, ECE 0.18 → 0.05; "
        "better than both parents in accuracy and ECE; not distinguishable from 0.25–0.5"
    )
    points = {point.lam: point for point in found.points}
    assert points["0.5"].p_accuracy == pytest.approx(1 / (R + 1))
    assert points["0.75"].p_accuracy > 0.9
    assert points["0.5"].gains["base"].accuracy.low == pytest.approx(0.06 - 0.0028, abs=5e-4)
    assert points["0.5"].gains["base"].accuracy.high == pytest.approx(0.06 + 0.0028, abs=5e-4)


def test_the_answer_without_parents_or_at_one():
    alone = frontier(curve(["0.2", "0.4"], [0.6, 0.5], [0.1, 0.2], noise=1e-4))
    assert alone.answer == "λ = 0.2: accuracy 60.0 %, ECE 0.10; distinguishable from its neighbours"
    assert alone.points[0].p_accuracy is None
    at_base = frontier(curve(["0", "0.4"], [0.6, 0.5], [0.1, 0.2], noise=1e-4))
    assert at_base.answer.startswith("λ = 0, which is base: accuracy 60.0 %, ECE 0.10")
    single = frontier(curve(["0"], [0.6], [0.1], noise=0.01))
    assert single.points[0].membership == 1
    assert single.answer == "λ = 0, which is base: accuracy 60.0 %, ECE 0.10"


def test_tasks_are_averaged_with_equal_weight_where_all_have_a_point():
    first = curve(["0", "0.5", "1"], [0.5, 0.6, 0.7], [0.1, 0.2, 0.3], task="a", noise=0.01)
    second = curve(["0", "1", "2"], [0.9, 0.7, 0.5], [0.3, 0.1, 0.1], task="b", noise=0.01, seed=1)
    average = macro_average([first, second])
    assert average.lambdas == ("0", "1")
    assert average.report.accuracy.tolist() == pytest.approx([0.7, 0.7])
    assert average.select.error.tolist() == pytest.approx([0.2, 0.2])
    expected = (first.report.resampled_accuracy[2] + second.report.resampled_accuracy[1]) / 2
    assert np.allclose(average.report.resampled_accuracy[1], expected)
    assert average.documents == (100, 100)
    assert macro_average([first, curve(["3"], [0.5], [0.5])]) is None
    assert macro_average([]) is None


def test_it_is_written_as_json(tmp_path):
    run = RunDir(tmp_path)
    found = frontiers([curve(["0", "0.5", "1"], [0.5, 0.6, 0.7], [0.1, 0.2, 0.3], task=t, noise=0.01) for t in "ab"])
    write_frontiers(run, found)
    written = json.loads((tmp_path / "report" / "frontier.json").read_text())
    assert written == found.to_json()
    assert [task["task"] for task in written["tasks"]] == ["a", "b"]
    assert written["macro"]["task"] == "macro average"
    assert written["reference"] == {"accuracy": 0.0, "error": 1.0}
    assert written["tasks"][0]["points"][1]["gains"]["aligned"]["accuracy"]["value"] == pytest.approx(-0.1)
    assert frontiers([]).to_json()["macro"] is None
