"""How much the samples of a prompt differ, and a generate task along λ: the cost of alignment that accuracy does not see.

Words are those of sacrebleu's 13a tokenizer, case kept; n-grams do not cross samples. Per prompt, over its N samples:

    distinct_1, _2, _3   different n-grams over all n-grams, in [0, 1]
    self_bleu            mean sentence BLEU of one sample against another, over all N (N − 1) ordered pairs, in [0, 1]
    distinct_answers     different samples after normalisation, 1 to N

BLEU is sacrebleu's `sentence_score` (n-grams up to 4 with effective order, exponential smoothing) over 100. Normalised is
as in SQuAD: lower case, no punctuation, no articles, single spaces. What does not exist (trigrams where all samples are
shorter, a pair where there is one sample) is NaN.

Sources: J. Li et al., "A diversity-promoting objective function for neural conversation models", NAACL 2016 (distinct-n);
Y. Zhu et al., "Texygen: a benchmarking platform for text generation models", SIGIR 2018 (self-BLEU, there against all other
samples at once); M. Post, "A call for clarity in reporting BLEU scores", WMT 2018; P. Rajpurkar et al., "SQuAD", EMNLP 2016.
"""

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from calibration.metrics.choice_tasks import Estimates
from calibration.metrics.predictions import Floats, Ints
from calibration.scores.per_document import LeftOut
from calibration.task_at_lambda import Point, parents_of
from calibration.uncertainty.intervals import Estimate
from calibration.uncertainty.resample import SPLITS, Resamples, draw
from contract import points, schemas
from contract.errors import LambdasweepError
from contract.location import read_table
from contract.rundir import RunDir

DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "distinct_answers")

_ORDERS = 4  # of n-grams in BLEU
_AT_ONCE = 1000  # prompts whose texts are in memory
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def diversity(prompt: Ints, texts: Sequence[str], prompts: int) -> Floats:
    """Return every metric [P, 5] of each prompt, in the order of DIVERSITY.

    Args:
        prompt: [S] which prompt each sample is of, ascending.
        texts: [S] the samples.
        prompts: P; one without samples has NaN.
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
            _, first = np.unique(gram, return_index=True)  # ids of one prompt are not those of another
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
    """Return the words of each sample [S], and for n = 1 to 4 the sample and an id of each n-gram, both [G].

    Two n-grams have the same id where they are the same words of the same prompt.
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
    """Return both samples of all ordered pairs of different samples of one prompt."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin, size in zip(starts[:-1], np.diff(starts), strict=True):
        first, second = np.nonzero(~np.eye(size, dtype=np.bool_))
        firsts.append(begin + first)
        seconds.append(begin + second)
    return np.concatenate(firsts), np.concatenate(seconds)


def _common(sample: Ints, gram: Ints, one: Ints, other: Ints, samples: int) -> Ints:
    """Return how many n-grams pairs of samples have in common, each as often as the one that has it less often.

    The k-th occurrence of an n-gram in a sample counts as a thing of its own; then common things are common n-grams.
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


def diversity_points(run: RunDir, task: str, record: Mapping[str, Any], resamples: int, seed: int) -> Iterator[Point]:
    """Yield every λ of a generate task that has anything committed, ascending; `record` is of the task, in plan.json.

    Values are means over the prompts that have one; a difference to a parent is taken on the prompts that both have.

    Raises:
        LambdasweepError: a table is missing or damaged; names the run, the task and λ.
    """
    kinds = ("generations", "quarantine")
    there = sorted(
        (lam for lam in record["lambdas"] if any(run.committed(task, lam, kind) for kind in kinds)),
        key=points.order,
    )
    if not there:
        return
    path = run.requests(task)
    if not path.is_file():
        raise LambdasweepError(
            f"{run.root}: task {task!r}: {path} is missing: restore it, or run the same sweep again to write it"
        )
    count = len(read_table(path, columns=["request_id"]))
    drawn = draw(task, count, resamples, seed)
    found: dict[str, tuple[Floats, LeftOut]] = {}
    for lam in there:
        found[lam] = _of_prompts(run, task, lam, count, record["samples"])
    parents = {name: lam for name, lam in parents_of(run.sweep()).items() if lam in found}
    for lam, (values, left_out) in found.items():
        estimates = _estimates("", values, drawn)
        for name, parent in parents.items():
            if parent != lam:
                estimates |= _estimates(f"_vs_{name}", values - found[parent][0], drawn)
        yield Point(lam, estimates, left_out, count, [])


def _of_prompts(run: RunDir, task: str, lam: str, prompts: int, samples: int) -> tuple[Floats, LeftOut]:
    """Return the metrics [P, 5] of the prompts at one λ; NaN where there are no samples."""
    table = run.generations(task, lam)
    prompt = table["request_id"].to_numpy()
    out = np.unique(run.quarantine(task, lam)["request_id"].to_numpy())
    counts = np.bincount(prompt, minlength=prompts) if len(prompt) else np.zeros(prompts, np.int64)
    whole = np.isin(counts, (0, samples)).all() and (np.diff(prompt) >= 0).all() and len(counts) == prompts
    whole = whole and all(
        set(table[name].unique().to_pylist()) <= {value} for name, value in schemas.place(lam).items()
    )
    if not whole or (out >= prompts).any() or counts[out].any():
        raise LambdasweepError(
            f"{run.root}: task {task!r} at λ = {lam}: its generations do not fit its prompts: delete them, and run the "
            "same sweep again"
        )
    unfinished = prompts - int((counts > 0).sum()) - len(out)
    found = []
    for first in range(0, prompts, _AT_ONCE):
        last = min(first + _AT_ONCE, prompts)
        begin, end = np.searchsorted(prompt, [first, last])
        texts = table["text"].slice(begin, end - begin).to_pylist()
        found.append(diversity(prompt[begin:end] - first, texts, last - first))
    return np.concatenate(found), LeftOut(len(out), unfinished)


def _estimates(suffix: str, values: Floats, drawn: Resamples) -> Estimates:
    """Return the mean over prompts of each metric [P, 5] on every split, and in every resample."""
    found: Estimates = {}
    size = len(DIVERSITY)
    exists = ~np.isnan(values)
    # [prompts, 10]: values and whether they are there. A sparse product has one order of summation on every machine.
    both = np.hstack([np.where(exists, values, 0.0), exists])
    for split in SPLITS:
        part = {"all": np.ones(len(values), np.bool_), "select": ~drawn.in_report, "report": drawn.in_report}[split]
        matrix = scipy.sparse.csr_matrix(both[part].T)
        sums = np.hstack([matrix @ chunk.astype(np.float64) for chunk in drawn.chunks(np.flatnonzero(part))])
        itself = matrix @ np.ones(int(part.sum()))
        with np.errstate(invalid="ignore"):
            resampled, means = sums[:size] / sums[size:], itself[:size] / itself[size:]
        for at, metric in enumerate(DIVERSITY):
            n = int(itself[size + at])
            found[f"{metric}{suffix}", "sum", split] = Estimate(float(means[at]), resampled[at], n)
    return found


def by_lambda(metrics: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Return by generate task its points in order, each with its metrics of all prompts: value, low and high.

    Args:
        metrics: schemas.METRICS, as `analyse.analyse` returns it.
    """
    wanted = pc.and_(pc.equal(metrics["split"], "all"), pc.is_in(metrics["metric"], pa.array(DIVERSITY)))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in metrics.filter(wanted).to_pylist():
        point = found.setdefault(row["task"], {}).setdefault(schemas.point_of(row), {"prompts": row["n"]})
        point[row["metric"]] = {"value": row["value"], "low": row["ci_low"], "high": row["ci_high"]}
        point["prompts"] = max(point["prompts"], row["n"])
    return {task: [_named(lam) | point for lam, point in rows.items()] for task, rows in found.items()}


def _named(lam: str) -> dict[str, str | None]:
    return {"lam": None, "point": lam} if points.is_named(lam) else {"lam": lam}
