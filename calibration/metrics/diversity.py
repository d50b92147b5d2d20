"""Diversity is how much the samples of a prompt differ; alignment may lower it, which accuracy does not see.

Words are those of sacrebleu's 13a tokenizer, with their case kept; n-grams do not cross samples. Each prompt has these
metrics over its N samples:

    distinct_1, _2, _3   the number of different n-grams over that of all n-grams, in [0, 1]
    self_bleu            the mean sentence BLEU of one sample against another, over all N (N − 1) ordered pairs, in [0, 1]
    distinct_answers     the number of different samples after normalisation, 1 to N

BLEU is sacrebleu's `sentence_score` (n-grams up to 4 with effective order, exponential smoothing) over 100. Texts are
normalised as in SQuAD: lower case, no punctuation, no articles, single spaces. A metric that does not exist (trigrams where
all samples are shorter, pairs where there is one sample) is NaN.

Sources: J. Li et al., "A diversity-promoting objective function for neural conversation models", NAACL 2016 (distinct-n);
Y. Zhu et al., "Texygen: a benchmarking platform for text generation models", SIGIR 2018 (self-BLEU, there against all other
samples at once); M. Post, "A call for clarity in reporting BLEU scores", WMT 2018; P. Rajpurkar et al., "SQuAD", EMNLP 2016.
"""

import re
import string
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from calibration.arrays import Floats, Ints

DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "distinct_answers")

_ORDERS = 4  # BLEU counts n-grams of up to so many words
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def diversity(prompt: Ints, texts: Sequence[str], prompts: int) -> Floats:
    """Return every metric [P, 5] of each prompt, in the order of DIVERSITY.

    Args:
        prompt: the prompt [S] that each sample belongs to, ascending.
        texts: the samples [S].
        prompts: the number P of prompts; a prompt without samples has NaN.
    """
    sizes = np.bincount(prompt, minlength=prompts)
    answers = np.zeros(prompts)
    for at, _ in {(int(at), normalised(text)) for at, text in zip(prompt, texts, strict=True)}:
        answers[at] += 1
    found = np.full((prompts, len(DIVERSITY)), np.nan)
    found[:, 4] = np.where(sizes > 0, answers, np.nan)

    lengths, grams = _grams(prompt, texts)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    one, other = _pairs(starts)
    correct, total = np.zeros((2, _ORDERS, len(one)), np.int64)
    for order, (sample, gram) in enumerate(grams):
        here = prompt[sample]
        if order < 3:
            many = np.bincount(here, minlength=prompts)
            _, first = np.unique(gram, return_index=True)  # two prompts have no ids of n-grams in common
            with np.errstate(invalid="ignore"):
                found[:, order] = np.bincount(here[first], minlength=prompts) / many
        correct[order] = _common(sample, gram, one, other, len(texts))
        total[order] = np.maximum(lengths - order, 0)[one]
    scores = _sentence_bleu(correct, total, lengths[one], lengths[other])
    with np.errstate(invalid="ignore"):
        pairs = np.bincount(prompt[one], minlength=prompts)
        found[:, 3] = np.bincount(prompt[one], scores, prompts) / pairs
    return found


def _grams(prompt: Ints, texts: Sequence[str]) -> tuple[Ints, list[tuple[Ints, Ints]]]:
    """Return the number of words of each sample [S], and for n = 1 to 4 the sample and the id of each n-gram, both [G].

    Two n-grams have the same id if they are the same words in samples of the same prompt.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    lengths = np.zeros(len(texts), np.int64)
    for at, text in enumerate(texts):
        found = tokenize(text.rstrip()).split()
        lengths[at] = len(found)
        words += [vocabulary.setdefault(word, len(vocabulary)) for word in found]
    word = np.array(words, np.int64)
    sample = np.repeat(np.arange(len(texts)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    gram = np.unique(prompt[sample] * max(len(vocabulary), 1) + word, return_inverse=True)[1]
    place = np.arange(len(word))
    grams = [(sample, gram)]
    for order in range(1, _ORDERS):
        kept = place + order < ends[place]
        place, gram = place[kept], gram[kept]
        gram = np.unique(gram * max(len(vocabulary), 1) + word[place + order], return_inverse=True)[1]
        grams.append((sample[place], gram))
    return lengths, grams


def _pairs(starts: Ints) -> tuple[Ints, Ints]:
    """Return the first and the second samples of all ordered pairs of different samples of the same prompt."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin, size in zip(starts[:-1], np.diff(starts), strict=True):
        first, second = np.nonzero(~np.eye(size, dtype=np.bool_))
        firsts.append(begin + first)
        seconds.append(begin + second)
    return np.concatenate(firsts), np.concatenate(seconds)


def _common(sample: Ints, gram: Ints, one: Ints, other: Ints, samples: int) -> Ints:
    """Return how many n-grams each pair of samples has in common; each counts as often as in the sample with fewer of it.

    The k-th occurrence of an n-gram in a sample is taken as a thing of its own, so that common things are common n-grams.
    """
    if not len(one):
        return np.zeros(0, np.int64)
    order = np.lexsort((gram, sample))
    key = np.stack([sample[order], gram[order]])
    is_first = np.concatenate([[True], (key[:, 1:] != key[:, :-1]).any(0)]) if len(order) else np.zeros(0, np.bool_)
    begin = np.flatnonzero(is_first)
    occurrence = np.arange(len(order)) - np.repeat(begin, np.diff(np.append(begin, len(order))))
    width = int(occurrence.max(initial=0)) + 1
    thing = np.unique(key[1] * width + occurrence, return_inverse=True)[1]
    shape = samples, int(thing.max(initial=-1)) + 1
    has = scipy.sparse.csr_matrix((np.ones(len(order), np.int32), (key[0], thing)), shape=shape)
    shared = (has @ has.T).tocsr()
    return np.asarray(shared[one, other], np.int64).ravel()


def _sentence_bleu(correct: Ints, total: Ints, length: Ints, reference: Ints) -> Floats:
    """Return sacrebleu's sentence BLEU over 100 from the counts [4, pairs] of common and of all n-grams."""
    precision = np.zeros(correct.shape)
    halvings = np.zeros(len(length))
    for order in range(_ORDERS):
        exists, missed = total[order] > 0, (total[order] > 0) & (correct[order] == 0)
        halvings += missed
        matched = np.where(missed, 0.5**halvings, correct[order])
        precision[order] = np.where(exists, matched / np.maximum(total[order], 1), 1.0)
    orders = np.maximum((total > 0).sum(0), 1)
    with np.errstate(divide="ignore"):
        penalty = np.where(length < reference, np.exp(1 - reference / np.maximum(length, 1)), 1.0)
    scores: Floats = penalty * np.exp(np.log(precision).sum(0) / orders)
    return np.where(correct.any(0), scores, 0.0)
