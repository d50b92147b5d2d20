"""The demo's world is exact, and its files are what the world gives."""

import itertools
import json
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy.stats import chisquare

from lambdasweep.demo import ALIGNED, BASE, CLOZE, LETTERS, world
from merge.pair import open_pair

FILES = {"letters": LETTERS, "cloze": CLOZE}


@pytest.mark.parametrize("place", world.PLACES)
def test_posterior_is_bayes_rule_over_the_joint_distribution(place: str) -> None:
    """The joint P(animal, clues) is enumerated: it sums to 1, and the posterior is its conditional."""
    kinds = list(world.CLUES)[:3]
    total = 0.0
    for clues in itertools.product(*kinds):
        joint = []
        for name, prior in world.PLACES[place].items():
            animal = world.ANIMALS.index(name)
            likelihood = 1.0
            for kind, clue in zip(kinds, clues, strict=True):
                likelihood *= world.CLUES[kind][animal][kind.index(clue)] / 10
            joint.append(prior / 10 * likelihood)
        total += sum(joint)
        np.testing.assert_allclose(world.posterior(place, clues), np.array(joint) / sum(joint), rtol=1e-12)
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
def test_answers_are_draws_from_the_posterior() -> None:
    """Among draws, the k-th likeliest choice is true as often as its probabilities sum to."""
    rng = Random(11)
    observed, expected = np.zeros(4), np.zeros(4)
    for _ in range(20_000):
        question = world.draw(rng)
        order = np.argsort(question.posterior)[::-1]
        observed[list(order).index(question.gold)] += 1
        expected += np.array(question.posterior)[order]
    assert chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("task", FILES)
def test_files_are_what_the_world_gives(task: str) -> None:
    assert FILES[task].read_text() == world.to_jsonl(world.evaluation()[task])
    rows = [json.loads(line) for line in FILES[task].read_text().splitlines()]
    assert len(rows) == world.EVALUATION_ROWS
    assert all(sum(row["posterior"]) == pytest.approx(1) for row in rows)
    assert len({row["query"] for row in rows}) == len(rows)


def test_training_never_sees_an_evaluation_question() -> None:
    held_out = {question.query for questions in world.evaluation().values() for question in questions}
    seen = Counter(question.query for question in itertools.islice(world.training(Random(2)), 5000))
    assert not held_out & seen.keys()
    assert max(seen.values()) > 1  # questions repeat in a world this small, so that only a filter keeps the others out


def test_the_pair_fits_together() -> None:
    pair = open_pair(str(BASE), str(ALIGNED))
    assert pair.warnings == ()
    assert pair.nbytes < 6e6


def test_renderings_are_those_of_the_formats() -> None:
    from lambdasweep.tasks.documents import TaskSpec, read_documents
    from lambdasweep.tasks.formats import render

    for task, file in FILES.items():
        documents = read_documents(TaskSpec(task, file, format=task)).documents
        for document, question in zip(documents, world.evaluation()[task], strict=True):
            prompt = render(document, "choices", task)
            assert (prompt.context, list(prompt.continuations)) == world.render(task, question)
