"""Written answers become arrays over documents: how sure the model was of each output, and which outputs say the same.

An output's confidences are made of the log-probabilities of its tokens, those that end it included and those of thinking
before its answer left out, under the model at temperature 1. Where a model thinks first, the engine goes on behind a text
that ends the answer: an output then counts as ending with the token that completes that text, as it does elsewhere.

    sum      the probability of the whole output
    tokens   the geometric mean of its tokens' probabilities
    lowest   the lowest probability of a token
    first    the probability of the token that the answer begins in
    p_true   what the model said of the answer being right, P(yes) / (P(yes) + P(no)), where it was asked
    verbalised  the number that the output itself gives, where one was looked for
    sum@λ, tokens@λ  sum and tokens of the model at another λ, which scored the output again
    votes    the share of a document's outputs whose answers are of the most frequent class (self-consistency); this is a
             confidence of the document's voted answer, and not of an output

Sources: sum and tokens: A. Malinin, M. Gales, "Uncertainty estimation in autoregressive structured prediction", ICLR 2021;
lowest: N. Varshney et al., "A stitch in time saves nine", arXiv 2307.03987; p_true: S. Kadavath et al., "Language models
(mostly) know what they know", arXiv 2207.05221; sum@λ and tokens@λ: BaseCal, ACL 2026; votes: X. Wang et al.,
"Self-consistency improves chain of thought reasoning in language models", ICLR 2023.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calibration.arrays import Bools, Floats, Ints
from calibration.scores.confidences import P_TRUE, VERBALISED, at_point
from calibration.scores.per_document import LeftOut
from contract import schemas
from contract.errors import LambdasweepError
from contract.records import TaskRecord
from contract.rundir import RunDir
from contract.units import rescored_name
from contract.whole_tables import read_or_problem


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """The S documents of a task at one λ whose K outputs are graded."""

    document: Ints  # [S] the index of each document in the requests table
    correct: Bools  # [S, K] whether each output is right
    logs: dict[str, Floats]  # [S, K] the log of each confidence in each output, in nats; NaN where an output has none
    voted: Bools  # [S] whether the voted answer is right: the most frequent one, of equally frequent ones the earliest
    votes: Ints  # [S] the outputs that give the voted answer
    classes: Ints  # [S] the number of different answers
    length: Floats  # [S] tokens of an output up to the end of its answer, the mean over the outputs
    cut: Floats  # [S] the share of the outputs that were cut at the limit
    entropy: Floats  # [S] the mean over these tokens of the entropy that they were drawn from, in nats
    left_out: LeftOut
    thinking: Floats | None = (
        None  # [S] tokens before an answer, the mean over the outputs; None where nothing ends them
    )

    @property
    def samples(self) -> int:
        """Return K."""
        return int(self.correct.shape[1])

    def restricted(self, kept: Ints) -> "AnswerScores":
        """Return the scores of the documents at these places [S], in this order."""
        return AnswerScores(
            self.document[kept],
            self.correct[kept],
            {name: values[kept] for name, values in self.logs.items()},
            self.voted[kept],
            self.votes[kept],
            self.classes[kept],
            self.length[kept],
            self.cut[kept],
            self.entropy[kept],
            self.left_out,
            None if self.thinking is None else self.thinking[kept],
        )


class AnswerLoader:
    """Reads the λs of one task whose answers are written."""

    def __init__(self, run: RunDir, task: str, record: TaskRecord) -> None:
        """Look at the task's requests.

        Raises:
            LambdasweepError: the requests are missing or damaged; the message names the run and the task.
        """
        self._run, self._task, self._samples = run, task, record.samples or 1
        self._shards, self._under = len(record.shards), tuple(record.rescored)
        self._where = f"{run.root}: task {task!r}"
        path = run.requests(task)
        table, problem = read_or_problem(path) if path.is_file() else (None, "is missing")
        if table is None:
            raise LambdasweepError(f"{self._where}: {path} {problem}: run the same sweep again, which writes it anew")
        self.count = len(table)
        self.doc_ids: list[str] = table["doc_id"].to_pylist()

    def load(self, lam: str) -> AnswerScores:
        """Read what is committed and graded at a λ.

        Raises:
            LambdasweepError: a table is damaged; the message names the run, the task and λ.
        """
        run, task, where = self._run, self._task, f"{self._where} at λ = {lam}"
        generations, graded = run.generations(task, lam), run.graded(task, lam)
        quarantine = np.unique(run.quarantine(task, lam)["request_id"].to_numpy())
        # Where a table of outputs is damaged or gone, what was made of it is still there until it is written anew.
        is_whole = len(run.committed(task, lam, "generations")) == self._shards
        graded = graded if is_whole else _of(generations, graded)
        if not len(graded):  # outputs are graded when all of a λ are there
            generations = generations.slice(0, 0)
        request, sample = generations["request_id"].to_numpy(), generations["sample"].to_numpy()
        document = request[:: self._samples]
        fits = (
            np.array_equal(request, np.repeat(document, self._samples))
            and np.array_equal(sample, np.tile(np.arange(self._samples), len(document)))
            and (np.diff(document) > 0).all()
            and np.array_equal(request, graded["request_id"].to_numpy())
            and np.array_equal(sample, graded["sample"].to_numpy())
            and all(
                set(table[name].unique().to_pylist()) <= {value}
                for table in (generations, graded)
                for name, value in schemas.place(lam).items()
            )
            and (len(document) == 0 or int(document[-1]) < self.count)
            and not np.isin(document, quarantine).any()
        )
        if not fits:
            raise LambdasweepError(
                f"{where}: its generations do not fit its documents and grades: delete them, and run the same sweep again"
            )
        left_out = LeftOut(len(quarantine), self.count - len(document) - len(quarantine))
        rescored = {
            under: table if is_whole else _of(generations, table)
            for under, table in ((under, run.rescored(task, lam, under)) for under in self._under)
            if len(run.committed(rescored_name(task, under), lam, "rescored")) == self._shards
        }
        return answer_scores(document, self._samples, generations, graded, left_out, where, rescored)


def _of(generations: pa.Table, made_of_them: pa.Table) -> pa.Table:
    """Return the rows that are of documents whose outputs are there."""
    return made_of_them.filter(pc.is_in(made_of_them["request_id"], generations["request_id"].combine_chunks()))


def answer_scores(
    document: Ints,
    samples: int,
    generations: pa.Table,
    graded: pa.Table,
    left_out: LeftOut,
    where: str,
    rescored: Mapping[str, pa.Table] | None = None,
) -> AnswerScores:
    """Return the scores of S documents with K outputs each.

    Args:
        document: [S] the index of each document.
        samples: K.
        generations: S · K rows of schemas.GENERATIONS, those of a document in the order of its samples.
        graded: the rows of schemas.GRADED of the same outputs.
        left_out: the documents that are not among these.
        where: the words that name the run, the task and λ in messages.
        rescored: what other λs make of these outputs, by λ, as schemas.RESCORED; documents may be missing there.

    Raises:
        LambdasweepError: the tables are damaged: an output without tokens, or a log-probability that is none.
    """
    shape = (len(document), samples)
    lists = generations["logprobs"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    start = graded["answer_start"].to_numpy().astype(np.int64)
    stops = schemas.with_columns(graded, schemas.GRADED)["answer_end"]
    was_cut = pc.is_valid(stops).to_numpy()
    # Tokens behind the answer's end say nothing of the answer; there are some only where the engine went on behind it.
    ends = np.where(was_cut, pc.fill_null(stops, 0).to_numpy().astype(np.int64) + 1, lengths)
    is_damaged = (lengths < 1) | (start < 0) | (start >= lengths) | (ends < 1) | (ends > lengths)
    if is_damaged.any() or not (values <= 0).all():
        raise LambdasweepError(
            f"{where}: an output has no tokens, or a token no log-probability: delete its generations, and run the same "
            "sweep again"
        )
    entropies = generations["entropies"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    begins = np.cumsum(lengths) - lengths
    thinks = graded["thinking_tokens"].null_count < len(graded)
    thinking = pc.fill_null(graded["thinking_tokens"], 0).to_numpy().astype(np.int64)
    # Of an output that ends with its thinking, the last token stands for the answer that is not there.
    before = np.minimum(thinking, ends - 1)
    place = np.arange(len(values)) - np.repeat(begins, lengths)
    is_behind = place >= np.repeat(ends, lengths)
    is_left_out = (place < np.repeat(before, lengths)) | is_behind
    of_answers = np.where(is_left_out, 0.0, values)  # log-probabilities are at most 0
    if len(lengths):
        sums, lowest = np.add.reduceat(of_answers, begins), np.minimum.reduceat(of_answers, begins)
        entropy = np.add.reduceat(np.where(is_behind, 0.0, entropies), begins)
    else:
        sums = lowest = entropy = np.empty(0)
    logs = {"sum": sums, "tokens": sums / (ends - before), "lowest": lowest, "first": values[begins + start]}
    if schemas.P_TRUE[0].name in generations.column_names:
        right, wrong = (generations[field.name].to_numpy().astype(np.float64) for field in schemas.P_TRUE)
        with np.errstate(invalid="ignore"):  # where both have probability 0 there is no confidence
            logs[P_TRUE] = right - np.logaddexp(right, wrong)
    if schemas.VERBALISED.name in graded.column_names:
        said = graded[schemas.VERBALISED.name].to_numpy().astype(np.float64)  # NaN where it is null
        with np.errstate(divide="ignore"):
            logs[VERBALISED] = np.log(said)
    tokens = Tokens(document, samples, lengths, is_left_out, ends - before)
    for under, table in (rescored or {}).items():
        again = tokens.rescored(table, where, under)
        logs |= {at_point("sum", under): again, at_point("tokens", under): again / tokens.counted}
    correct = graded["correct"].combine_chunks().to_numpy(zero_copy_only=False).reshape(shape)
    classes = graded["answer_class"].combine_chunks().dictionary_encode().indices.to_numpy().reshape(shape)
    voted, votes, different = _vote(classes, correct)
    is_cut = pc.equal(generations["finish_reason"], "length").combine_chunks().to_numpy(zero_copy_only=False)
    is_cut = is_cut & ~was_cut
    per_document = ends.reshape(shape)
    return AnswerScores(
        document=document,
        correct=correct,
        logs={name: one.reshape(shape) for name, one in logs.items()},
        voted=voted,
        votes=votes,
        classes=different,
        length=per_document.mean(axis=1),
        cut=is_cut.reshape(shape).mean(axis=1),
        entropy=entropy.reshape(shape).sum(axis=1) / per_document.sum(axis=1),
        left_out=left_out,
        thinking=thinking.reshape(shape).mean(axis=1) if thinks else None,
    )


@dataclass(frozen=True, slots=True)
class Tokens:
    """Says which tokens of S · K outputs count, where another λ scores them, too."""

    document: Ints  # [S]
    samples: int  # K
    lengths: Ints  # [S · K] tokens of each output
    is_left_out: Bools  # [sum of lengths] whether a token is of thinking, or behind the answer
    counted: Ints  # [S · K] tokens of each output that are not left out

    def rescored(self, table: pa.Table, where: str, under: str) -> Floats:
        """Return the log-probability [S · K] of each output by a table of schemas.RESCORED, NaN where it has none.

        Raises:
            LambdasweepError: the table is of other outputs.
        """
        found = np.full(len(self.lengths), np.nan)
        request, sample = table["request_id"].to_numpy(), table["sample"].to_numpy().astype(np.int64)
        lists = table["logprobs"].combine_chunks()
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        place = np.searchsorted(self.document, request)
        fits = (place < len(self.document)).all() and np.array_equal(self.document[place], request)
        row = place * self.samples + sample if fits else place
        fits = fits and (sample < self.samples).all() and (np.diff(row) > 0).all()
        if not fits or not np.array_equal(self.lengths[row], lengths) or not (values <= 0).all():
            raise LambdasweepError(
                f"{where}: what λ = {under} makes of its outputs does not fit them: delete its table under rescored/, and "
                "run the same sweep again"
            )
        if len(row):
            is_scored = np.zeros(len(self.lengths), np.bool_)
            is_scored[row] = True
            is_there = np.repeat(is_scored, self.lengths)
            kept = np.where(self.is_left_out[is_there], 0.0, values)
            found[row] = np.add.reduceat(kept, np.cumsum(lengths) - lengths)
        return found


def _vote(classes: Ints, correct: Bools) -> tuple[Bools, Ints, Ints]:
    """Return whether the voted answer of each document is right, its votes, and the number of different answers, all [S]."""
    voted, votes, different = [], [], []
    for row, right in zip(classes.tolist(), correct.tolist(), strict=True):
        counts = Counter(row)  # of equally frequent ones, the first that was seen comes first
        ((winner, count),) = counts.most_common(1)
        voted.append(right[row.index(winner)])
        votes.append(count)
        different.append(len(counts))
    return np.array(voted, np.bool_), np.array(votes, np.int64), np.array(different, np.int64)
