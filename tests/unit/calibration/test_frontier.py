"""The frontier, λ*, the tests against the parents and the answer are as worked out by hand."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from calibration.analyse import analyse
from calibration.frontier.curve import Curve, collect_curve, stacked
from calibration.frontier.frontier import Frontiers, frontier, reported, write_frontiers
from calibration.frontier.held_out import claim_of, held_out, measured, p_text
from calibration.frontier.lambda_star import MARGIN, choose, choose_in_resamples, optimism
from calibration.report.facts import gather
from calibration.report.notices import notices
from calibration.scores.per_document import LeftOut
from calibration.task_at_lambda import TaskMetrics
from calibration.terminal.tables import render
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.multiple_tests import step_down
from contract.commit import commit_json
from contract.records import read_asked
from contract.rundir import RunDir
from tests.support.curves import R, curve, track
from tests.support.tables import SWEEP, add_quarantine, add_scores, add_task


def test_the_frontier_by_hand():
    found = frontier(curve(["0", "0.5", "1", "1.5"], [0.60, 0.65, 0.63, 0.55], [0.05, 0.10, 0.20, 0.30]))
    assert [point.on_frontier for point in found.points] == [True, True, False, False]
    assert [point.membership for point in found.points] == [1, 1, 0, 0]
    half, beyond = found.points[1], found.points[3]
    assert (half.gains["aligned"].dominates, half.gains["aligned"].dominated) == (True, False)
    assert (half.gains["base"].dominates, half.gains["base"].dominated) == (False, False)
    assert all(gain.dominated and not gain.dominates for gain in beyond.gains.values())
    assert half.gains["aligned"].accuracy.value == pytest.approx(0.02)
    assert half.gains["aligned"].error.value == pytest.approx(-0.1)
    assert half.gains["aligned"].nll.value == pytest.approx(-0.1)
    # Up to an accuracy of 0.6 some point has an error of 0.05, and up to 0.65 one has 0.1.
    assert found.hypervolume == pytest.approx(0.6 * 0.95 + 0.05 * 0.9)
    assert set(found.points[0].gains) == {"aligned"}  # no parent is compared with itself
    assert found.points[0].p_accuracy is None


def test_membership_is_how_often_a_point_is_on_the_frontier():
    near = curve(["0", "0.5", "1"], [0.6, 0.6, 0.2], [0.1, 0.1, 0.9], noise=0.02)
    shares = [point.membership for point in frontier(near).points]
    # The two points are exchangeable, so that each dominates the other in a quarter of the resamples.
    assert shares[:2] == pytest.approx([0.75, 0.75], abs=0.08)
    assert shares[2] == 0
    assert frontier(near).points[0].on_frontier
    assert frontier(near).points[1].on_frontier  # equal points do not dominate each other


# λ*


def test_of_the_accurate_ones_the_one_of_lowest_nll_is_chosen():
    accuracy, nll = [0.60, 0.645, 0.65, 0.62], [0.90, 0.95, 1.00, 0.92]
    error = [0.5, 0.4, 0.1, 0.0]  # this point has no say
    assert choose(track(accuracy, error, nll)) == 1  # the margin of a point: 0.645 is within, 0.62 is not
    assert choose(track(accuracy, error, nll), margin=0.004) == 2
    assert choose(track(accuracy, error, nll), margin=0.03) == 3
    assert choose(track(accuracy, error, nll), margin=0.05) == 0
    assert choose(track([0.6, 0.6, 0.6], error[:3], [1.0, 0.9, 0.9])) == 1  # the lowest of equals is taken
    assert choose(track([0.6, 0.59, 0.6], error[:3], [1.0, 0.9, 0.9])) == 2  # the most accurate of equals is taken


def test_two_standard_errors_of_the_difference_count_where_they_are_more_than_the_margin():
    accuracy, nll = [0.60, 0.64, 0.65, 0.62], [0.95, 0.90, 1.00, 0.80]
    # The standard error of a difference is about 0.014, so two are 0.028: only 0.62 is beyond, as it is 0.03 below.
    assert choose(track(accuracy, nll, nll, noise=0.01)) == 1
    assert choose(track(accuracy, nll, nll, noise=0.012)) == 3  # two standard errors are 0.034
    assert choose(track(accuracy, nll, nll, noise=0.012), margin=0.06) == 3
    # Numbers that vary together can still be told apart.
    assert choose(track(accuracy, nll, nll, noise=0.001, shared=0.05)) == 1


def test_a_parent_is_a_candidate_like_all_others():
    base_is_best = curve(["0", "0.5", "1"], [0.6, 0.6, 0.6], [0.05, 0.1, 0.2], [0.9, 1.0, 1.2], noise=0.001)
    found = frontier(base_is_best)
    assert found.chosen.lam == "0"
    assert found.answer.startswith(
        "λ = 0, which is base (unlike its neighbours; 50 documents). Against aligned: NLL −0.30 ("
    )
    assert "Against base" not in found.answer


def test_the_choice_is_repeated_in_every_resample():
    made = track([0.60, 0.64, 0.65, 0.40], [0.3] * 4, [0.10, 0.05, 0.06, 0.0], noise=0.01)
    places = choose_in_resamples(made)
    assert len(places) == R
    (_, accuracy), (_, nll) = stacked(made.accuracy, made.nll)
    spread = np.std(accuracy[:, None] - accuracy[None], axis=2, ddof=1)
    for r in range(0, R, 37):
        best = int(np.argmax(accuracy[:, r]))
        close = [i for i in range(4) if accuracy[best, r] - accuracy[i, r] <= max(MARGIN, 2 * spread[i, best])]
        assert places[r] == min(close, key=lambda i: nll[i, r])
    assert 3 not in places


@pytest.mark.slow
def test_intervals_of_gains_allow_for_what_the_choice_flatters():
    """All λs are equal, and noise alone makes one look best: the interval of its gain in NLL still holds the truth."""
    lambdas, noise, trials = [str(i / 16) for i in range(17)], 0.02, 100
    lambdas[0], lambdas[-1] = "0", "1"
    rng = np.random.default_rng(0)
    held, narrow = [], []
    for trial in range(trials):
        accuracy, nll = noise * rng.normal(size=(2, len(lambdas)))
        made = curve(lambdas, 0.6 + accuracy, [0.1] * len(lambdas), 1 + nll, noise=noise, seed=trial)
        found = frontier(made)
        star = next(point for point in found.points if point.lam == found.chosen.lam)
        flattery = optimism(made.tracks["all"], choose_in_resamples(made.tracks["all"]))
        for gain in star.gains.values():
            held.append(gain.nll.low <= 0 <= gain.nll.high)
            narrow.append(gain.nll.low <= 0 <= gain.nll.high - flattery[1])
    assert np.mean(narrow) < 0.88
    assert np.mean(held) > 0.93


def test_the_choice_flatters_by_what_the_chosen_are_better_in_resamples():
    made = track([0.60, 0.64, 0.65], [0.3] * 3, [0.10, 0.05, 0.06], noise=0.01)
    places = choose_in_resamples(made)
    (_, drawn), (_, drawn_nll) = stacked(made.accuracy, made.nll)
    better = np.mean([drawn[place, r] - drawn[place].mean() for r, place in enumerate(places)])
    lower = np.mean([drawn_nll[place].mean() - drawn_nll[place, r] for r, place in enumerate(places)])
    assert optimism(made, places) == (pytest.approx(better), pytest.approx(lower))
    assert better > 0.001
    only = track([0.6], [0.3], [0.1], noise=0.01)  # where nothing is chosen, nothing is flattered
    assert optimism(only, choose_in_resamples(only)) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))


@pytest.mark.slow
def test_a_lambda_without_the_hard_documents_is_not_compared(tmp_path):
    """At λ = 0.5 the model is no better, but the documents that all λs get wrong are in quarantine there."""
    run, documents, hard = RunDir(tmp_path), 40, range(6)
    lambdas = ["0", "0.5", "1", "1.5"]
    add_task(run, "quiz", [2] * documents, lambdas)
    for lam in lambdas:
        left = [d for d in range(documents) if not (lam == "0.5" and d in hard)]
        right = {d: -0.2 - 0.01 * d for d in left} | {d: -3.0 - float(lam) for d in left if d in hard}
        scores = {2 * d + choice: [logprob] for d, good in right.items() for choice, logprob in ((0, good), (1, -1.5))}
        add_scores(run, "quiz", lam, scores)
    add_quarantine(run, "quiz", "0.5", [2 * d + choice for d in hard for choice in (0, 1)])
    (found,) = analyse(run, resamples=50).found.tasks
    assert [point.lam for point in found.points] == ["0", "1", "1.5"]
    assert {point.documents for point in found.points} == {documents}
    assert found.chosen.lam == "0"
    assert found.answer.endswith("Not compared: λ = 0.5, where other documents have scores than at most λs.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "compared", "says"),
    [
        (
            {"0": [1], "0.5": [2], "1": [3]},
            ["0", "0.5", "1"],
            "The λs have scores of different documents, and differ by that",
        ),
        (
            {"0": [1], "0.5": [1]},
            ["0", "0.5"],
            "Not compared: λ = 1, where other documents have scores than at most λs.",
        ),
        ({"1": [1]}, ["0", "0.5"], "Not compared: λ = 1, where other documents have scores than at most λs."),
        ({}, ["0", "0.5", "1"], ""),
    ],
)
def test_which_documents_are_those_of_most_lambdas(tmp_path, gone, compared, says):
    run, documents = RunDir(tmp_path), 20
    add_task(run, "quiz", [2] * documents, ["0", "0.5", "1"])
    rng = np.random.default_rng(0)
    for lam in ("0", "0.5", "1"):
        left = [r for r in range(2 * documents) if r // 2 not in gone.get(lam, [])]
        add_scores(run, "quiz", lam, {r: [-abs(rng.normal())] for r in left})
        if lam in gone:
            add_quarantine(run, "quiz", lam, [2 * d + choice for d in gone[lam] for choice in (0, 1)])
    analysis = analyse(run, resamples=30)
    (found,) = analysis.found.tasks
    assert [point.lam for point in found.points] == compared
    assert says in found.answer
    assert ("Not compared" in found.answer) == (len(compared) < 3)
    assert analysis.apart == {"quiz": tuple(lam for lam in ("0", "0.5", "1") if lam not in compared)}


def test_a_lambda_of_a_continuation_task_without_the_hard_documents_is_not_the_best(tmp_path):
    run, documents, lambdas = RunDir(tmp_path), 20, ["0", "0.5", "1"]
    add_task(run, "words", [1] * documents, lambdas)
    for lam in lambdas:
        easy = range(15) if lam == "0.5" else range(documents)
        add_scores(run, "words", lam, {d: [-9.0 if d >= 15 else -1.0 - float(lam)] for d in easy})
    add_quarantine(run, "words", "0.5", range(15, documents))
    analysis = analyse(run, resamples=30)
    assert analysis.apart == {"words": ("0.5",)}
    console = Console(width=100, file=io.StringIO())
    for table in render(analysis.metrics, left_out=analysis.apart):
        console.print(table)
    lines = {line.split()[0]: line for line in console.file.getvalue().splitlines() if line.strip()}
    assert "*" in lines["0"]
    assert "*" not in lines["0.5"]
    assert "apart" in lines["0.5"]
    assert "apart: scores are of other documents" in console.file.getvalue()
    (told,) = (text for text in notices(gather(analysis, "ece_width15", "sum")) if "than at most λs" in text)
    assert "λ = 0.5" in told


def test_one_document_of_a_thousand_makes_no_other_documents(tmp_path):
    some = np.arange(1000)
    rows = {
        (name, "sum", split): Estimate(0.5, np.full(R, 0.5), 1000)
        for name in ("acc", "nll_floored", "ece_width15")
        for split in ("all", "select", "report")
    }
    for lost, apart in ((1, ()), (2, ("1",))):
        at = {"0": some, "0.5": some, "1": some[lost:]}
        made = [TaskMetrics(lam, rows, LeftOut(0, 0), 1000, [], scored) for lam, scored in at.items()]
        assert collect_curve("quiz", made, "ece_width15", "sum", {}).apart == apart


def test_gains_are_the_differences_of_the_table(tmp_path):
    run, documents = RunDir(tmp_path), 30
    add_task(run, "quiz", [3] * documents, ["0", "0.5", "1"])
    rng = np.random.default_rng(1)
    for lam in ("0", "0.5", "1"):
        add_scores(run, "quiz", lam, {request: [-abs(rng.normal())] for request in range(3 * documents)})
    analysis = analyse(run, resamples=50)
    (found,) = analysis.found.tasks
    rows = {(row["metric"], row["point"]): row for row in analysis.metrics.to_pylist() if row["split"] == "all"}
    names = {"accuracy": "acc", "nll": "nll_floored", "error": "ece_width15"}
    for point in found.points:
        if point.lam == found.chosen.lam:
            continue
        for parent, gain in point.gains.items():
            for field, metric in names.items():
                row, value = rows[f"{metric}_vs_{parent}", point.lam], getattr(gain, field)
                assert (value.value, value.low, value.high) == (row["value"], row["ci_low"], row["ci_high"])


def test_only_the_gains_of_the_chosen_are_widened():
    made = curve(["0", "0.5", "1"], [0.60, 0.66, 0.65], [0.1] * 3, [0.9, 0.8, 0.81], noise=0.02)
    found, of = frontier(made), made.tracks["all"]
    flattery = optimism(of, choose_in_resamples(of))
    assert (found.chosen.lam, min(flattery) > 0) == ("0.5", True)
    for i, wider in ((1, flattery), (2, (0, 0))):
        gain = found.points[i].gains["base"]
        accuracy = measured(of.accuracy[i].minus(of.accuracy[0]), "acc_vs_parent")
        nll = measured(of.nll[i].minus(of.nll[0]), "nll_vs_parent")
        assert (gain.accuracy.low, gain.accuracy.high) == (accuracy.low - wider[0], accuracy.high)
        assert (gain.nll.low, gain.nll.high) == (nll.low, nll.high + wider[1])


def test_resamples_without_a_value_are_left_out_everywhere():
    drawn = np.array([0.5, np.nan, 0.7])
    one, other = Estimate(0.6, drawn, 9), Estimate(0.8, np.array([0.8, 0.9, 1.0, 1.1]), 9)
    (_, first), (_, second) = stacked([one], [other])
    assert first.tolist() == [[0.5, 0.7]]
    assert second.tolist() == [[0.8, 1.0]]


def test_the_margin_is_the_one_that_was_last_reported(tmp_path):
    run = RunDir(tmp_path)
    commit_json(run.sweep_json, SWEEP)
    commit_json(run.plan_json, {"tasks": {}})
    assert (read_asked(run).margin, reported(run)[0], analyse(run, resamples=10).found.margin) == (None, None, MARGIN)
    commit_json(run.plan_json, {"tasks": {}, "margin": 0.03})
    assert (read_asked(run).margin, reported(run)[0], analyse(run, resamples=10).found.margin) == (0.03, None, 0.03)
    write_frontiers(run, Frontiers((), 0.02))
    assert (read_asked(run).margin, reported(run)[0]) == (0.03, 0.02)


# Tests against the parents


def halves(lambdas, select, report, **others):
    return Curve(
        "quiz", "ece_width15", "sum", tuple(lambdas), {"all": report, "select": select, "report": report}, **others
    )


def test_what_is_tested_is_chosen_on_one_half_and_measured_on_the_other():
    # `select` prefers 0.5, `report` would prefer 0.25.
    select = track([0.6] * 4, [0.2] * 4, [1.0, 0.9, 0.8, 1.1], noise=0.001)
    report = track([0.60, 0.66, 0.63, 0.61], [0.10, 0.02, 0.08, 0.30], [1.0, 0.7, 0.9, 1.1], noise=0.005)
    made = halves(["0", "0.25", "0.5", "1"], select, report)
    found = held_out(made, MARGIN)
    assert (found.lam, found.documents) == ("0.5", 50)
    assert [(one.parent, one.metric) for one in found.tests] == [
        (parent, metric) for parent in ("base", "aligned") for metric in ("accuracy", "nll", "error")
    ]
    for one in found.tests:
        of = getattr(report, one.metric)
        there, parent = of[2], of[0 if one.parent == "base" else 3]
        assert one.difference.value == pytest.approx(there.value - parent.value)
        sign = 1 if one.metric == "accuracy" else -1
        drawn = sign * (there.resampled - parent.resampled)
        gain = sign * (there.value - parent.value)
        # This is one claim alone: the p-value is how often resamples move by as much as the gain, in their own standard
        # errors.
        assert one.p == pytest.approx((1 + np.sum(drawn - gain >= gain)) / (1 + R))
        assert one.p_worse == pytest.approx((1 + np.sum(gain - drawn >= -gain)) / (1 + R))
    assert claim_of(made, MARGIN).evidence.lam == "0.5"


def claim_curve(accuracy, error, noise=0.002, parents=None):
    made = track(accuracy, error, noise=noise)
    others = {} if parents is None else {"parents": parents}
    return halves(["0", "0.5", "1"], made, made, **others)


@pytest.mark.parametrize(
    ("accuracy", "error", "noise", "verdict"),
    [
        ([0.60, 0.64, 0.62], [0.05, 0.04, 0.20], 0.002, "yes"),
        # It is better calibrated than aligned, but not twice as well.
        ([0.60, 0.64, 0.62], [0.05, 0.12, 0.20], 0.002, "not shown"),
        ([0.60, 0.64, 0.64], [0.05, 0.04, 0.20], 0.002, "not shown"),  # it is only as accurate as aligned
        ([0.60, 0.64, 0.62], [0.05, 0.04, 0.20], 0.050, "not shown"),  # there are too few documents
        ([0.65, 0.64, 0.62], [0.05, 0.04, 0.20], 0.002, "no"),  # it is less accurate than base
        ([0.60, 0.64, 0.62], [0.05, 0.25, 0.20], 0.002, "no"),  # it is worse calibrated than aligned
    ],
)
def test_the_claim_of_a_point_better_than_both_parents(accuracy, error, noise, verdict):
    found = claim_of(claim_curve(accuracy, error, noise), MARGIN)
    assert found.verdict == verdict
    assert f"both parents and far better calibrated than aligned: {verdict}. λ = 0.5, chosen" in found.text
    assert "against base (p" in found.text
    assert "(below half: p" in found.text


def test_a_p_value_is_never_written_as_0():
    assert [p_text(p) for p in (0.0001, 0.0011, 0.0499, 0.5)] == ["p < 0.001", "p = 0.001", "p = 0.050", "p = 0.50"]


def test_there_is_no_claim_without_both_parents_or_anything_between():
    assert claim_of(claim_curve([0.6] * 3, [0.1] * 3, parents={"base": "0"}), MARGIN) is None
    assert claim_of(claim_curve([0.6] * 3, [0.1] * 3, parents={"base": "0", "aligned": "2"}), MARGIN) is None
    outside = curve(["0", "1", "1.5"], [0.6] * 3, [0.1] * 3)
    assert claim_of(outside, MARGIN) is None
    assert frontier(outside).claim is None


def test_a_claim_is_about_a_point_between_even_where_lambda_star_is_a_parent():
    base_is_best = curve(["0", "0.5", "1"], [0.6, 0.6, 0.6], [0.05, 0.1, 0.2], [0.9, 1.0, 1.2], noise=0.001)
    found = frontier(base_is_best)
    assert (found.chosen.lam, found.claim.evidence.lam) == ("0", "0.5")


def test_the_table_is_adjusted_for_all_points_and_all_parents():
    lambdas = ["0", "0.25", "0.5", "0.75", "1"]
    made = curve(lambdas, [0.60, 0.62, 0.635, 0.63, 0.615], [0.10, 0.09, 0.06, 0.07, 0.12], noise=0.02)
    points = {point.lam: point for point in frontier(made).points}
    (accuracy, drawn), (error, drawn_error) = stacked(made.tracks["all"].accuracy, made.tracks["all"].error)
    inner, parents = [1, 2, 3], [0, 4]
    for value, resampled, sign, name in ((accuracy, drawn, 1, "p_accuracy"), (error, drawn_error, -1, "p_error")):
        # Every pair of a point and a parent is one claim among six; a point has the worse of its two.
        pairs = [(i, parent) for parent in parents for i in inner]
        gains = np.array([sign * (value[i] - value[parent]) for i, parent in pairs])
        moved = np.array([sign * (resampled[i] - resampled[parent]) for i, parent in pairs])
        adjusted = dict(zip(pairs, step_down(gains, moved), strict=True))
        harder = 0
        for i in inner:
            worst = max(adjusted[i, parent] for parent in parents)
            assert getattr(points[lambdas[i]], name) == worst
            alone = max(step_down(gains[k : k + 1], moved[k : k + 1])[0] for k, (j, _) in enumerate(pairs) if j == i)
            assert worst >= alone
            harder += worst > alone
        assert harder  # more claims have more chances for luck
    without = dataclasses.replace(made, parents={"base": "0", "aligned": "2"})
    assert {point.p_accuracy for point in frontier(without).points} == {None}


# The answer


def test_the_answer_of_a_clear_case():
    lambdas = ["0", "0.25", "0.5", "0.75", "1"]
    # 0.25 and 0.5 are alike, and better than both parents by many standard errors (0.0014).
    made = curve(
        lambdas,
        [0.60, 0.659, 0.66, 0.63, 0.64],
        [0.10, 0.0505, 0.05, 0.12, 0.18],
        [1.0, 0.8005, 0.8, 0.9, 1.1],
        noise=0.001,
    )
    scaled = {"nll": Estimate(0.92, np.full(R, 0.92), 50), "error": Estimate(0.04, np.full(R, 0.04), 50)}
    found = frontier(dataclasses.replace(made, scaled=scaled))
    assert found.chosen.lam == "0.5"
    assert found.answer == (
        "λ = 0.5 (no difference shown between 0.25 and 0.5; 50 documents). "
        "Against aligned: NLL −0.30 (−0.30 to −0.30), ECE 0.18 → 0.05 (−0.13 to −0.13), accuracy +2.0 points (1.7 to 2.3). "
        "Against base: NLL −0.20 (−0.20 to −0.20), ECE 0.10 → 0.05 (−0.05 to −0.05), accuracy +6.0 points (5.7 to 6.3). "
        "The cheap alternative, aligned with a temperature: NLL 0.92, ECE 0.04; λ* has NLL 0.80, ECE 0.05."
    )
    assert found.claim.verdict == "yes"
    gain = found.points[2].gains["base"].accuracy
    assert (gain.low, gain.high) == (pytest.approx(0.06 - 0.0028, abs=5e-4), pytest.approx(0.06 + 0.0028, abs=5e-4))


def test_the_answer_says_where_no_difference_is_shown():
    made = curve(["0", "0.5", "1"], [0.60, 0.61, 0.60], [0.1, 0.1, 0.5], [0.9, 0.89, 2.0], noise=0.03)
    found = frontier(made)
    assert found.answer.startswith(
        "λ = 0.5 (no difference shown between 0 and 0.5; 50 documents). Against aligned: NLL −1.11 ("
    )
    assert found.answer.endswith("Against base: no difference shown.")


def test_pooled_tasks_have_means_over_tasks_beside():
    made = curve(["0", "0.5"], [0.60, 0.61], [0.1, 0.1], [0.9, 0.8])
    nothing = np.empty(0)
    macro = {"nll": (Estimate(1, nothing, 9), Estimate(0.85, nothing, 9)), "brier": (Estimate(1, nothing, 9),) * 2}
    found = frontier(dataclasses.replace(made, macro=macro))
    assert found.is_pooled
    assert found.macro["nll"].value == 0.85  # the mean is that of λ*
    assert found.answer.endswith(
        "ECE is of all documents pooled, where opposite errors of tasks cancel; as means over tasks, NLL 0.85, Brier 1.00."
    )
    assert not frontier(made).is_pooled


def test_the_answer_without_parents():
    alone = frontier(curve(["0.2", "0.4"], [0.6, 0.5], [0.1, 0.2], noise=1e-4))
    assert alone.answer == "λ = 0.2 (unlike its neighbours; 50 documents). Accuracy 60.0 %, NLL 0.10, ECE 0.10."
    assert alone.points[0].p_accuracy is None
    single = frontier(curve(["0"], [0.6], [0.1], noise=0.01))
    assert single.points[0].membership == 1
    assert single.answer == "λ = 0, which is base (50 documents). Accuracy 60.0 %, NLL 0.10, ECE 0.10."


def test_it_is_written_as_json(tmp_path):
    run = RunDir(tmp_path)
    made = [curve(["0", "0.5", "1"], [0.5, 0.6, 0.7], [0.1, 0.2, 0.3], task=t, noise=0.01) for t in "ab"]
    found = Frontiers(tuple(map(frontier, made)), 0.01, (frontier(dataclasses.replace(made[0], task="all tasks")),))
    write_frontiers(run, found)
    written = json.loads((tmp_path / "report" / "frontier.json").read_text())
    assert written == json.loads(json.dumps(found.to_json()))
    assert [task["task"] for task in written["tasks"]] == ["a", "b"]
    assert [task["task"] for task in written["pools"]] == ["all tasks"]
    assert written["margin"] == 0.01
    assert written["reference"] == {"accuracy": 0.0, "error": 1.0}
    assert written["tasks"][0]["points"][1]["gains"]["aligned"]["accuracy"]["value"] == pytest.approx(-0.1)
    assert written["tasks"][0]["claim"]["verdict"] == found.tasks[0].claim.verdict
    assert found.first is found.pools[0]
    assert Frontiers((), 0.01).first is None
