"""Diversity of samples, held against sacrebleu and against counting by hand."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from calibration.diversity import DIVERSITY, diversity, normalised

texts = st.lists(
    st.lists(st.sampled_from(["the", "cat", "sat", "The", "mat", ",", "don't", "a", "7.5", "—"]), max_size=9).map(
        " ".join
    ),
    min_size=1,
    max_size=5,
)


def by_hand(samples: list[str]) -> dict[str, float]:
    """The metrics of one prompt, each from its definition."""
    bleu = BLEU(effective_order=True)
    words = [bleu.tokenizer(text.rstrip()).split() for text in samples]
    found = {}
    for n in (1, 2, 3):
        grams = [tuple(some[i : i + n]) for some in words for i in range(len(some) - n + 1)]
        found[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else math.nan
    pairs = list(itertools.permutations(samples, 2))
    scores = [bleu.sentence_score(one, [other]).score / 100 for one, other in pairs]
    found["self_bleu"] = sum(scores) / len(scores) if scores else math.nan
    found["distinct_answers"] = len({normalised(text) for text in samples})
    return found


@given(prompts=st.lists(texts, min_size=1, max_size=4))
def test_metrics_are_those_of_their_definitions(prompts: list[list[str]]) -> None:
    prompt = np.repeat(np.arange(len(prompts)), [len(samples) for samples in prompts])
    found = diversity(prompt, [text for samples in prompts for text in samples], len(prompts))
    for row, samples in zip(found, prompts, strict=True):
        expected = by_hand(samples)
        np.testing.assert_allclose(row, [expected[name] for name in DIVERSITY], rtol=1e-13, atol=0)
