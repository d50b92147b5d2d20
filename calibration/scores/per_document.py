"""Tables of scores become arrays over documents: which documents are complete at a λ, and their scores.

Three confidences are made of the same log-probabilities. Each is a softmax over a document's choices, of

    sum      the summed log-probability of the continuation
    tokens   the log-probability per continuation token
    bytes    the log-probability per UTF-8 byte of the continuation

A task with an unconditional pass has a fourth one, of

    pmi      the summed log-probability less that of the same tokens without the document: the pointwise mutual information
             of document and choice (Holtzman et al. 2021, "Surface Form Competition", domain conditional PMI)

Nothing here loops over rows: list columns are flattened once, and documents are rows of arrays padded with −inf.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from calibration.arrays import Bools, Floats, Ints
from calibration.scores.columns import ints, one_chunk, owners_of, places
from calibration.scores.documents import Continuations, Documents, damaged_requests
from contract.errors import LambdasweepError
from contract.points import is_named

CONFIDENCES = ("sum", "tokens", "bytes")  # the confidences that every choice task has
PMI = "pmi"

_ABOVE_0 = 1e-3  # nats by which rounding may lift a log-probability
_TOKENS = "The committed table is damaged: delete the file that holds it, then the same sweep scores it again"


@dataclass(frozen=True, slots=True)
class Unconditional:
    """What a task's U unconditional requests say of its R requests at one λ."""

    logprob: (
        Floats  # [R] the log-probability of each request's continuation without its document, in nats; NaN: not scored
    )
    quarantined: Bools  # [R] whether it could not be scored


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Counts the documents that are in no metric, by reason."""

    quarantined: int  # documents with a request that could not be scored
    unfinished: int  # documents with a request that has no committed score yet
    undefined: int = 0
    """Documents without a distribution over their choices: all have probability 0, or one has so without the document."""


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """The S complete documents of a task at one λ, with up to C choices."""

    document: Ints  # [S] the index of each document in Documents
    sizes: Ints  # [S] the number of choices of each document
    gold: Ints  # [S] the place of each document's gold choice
    logits: dict[str, Floats]
    """The scores [S, C] of the choices by confidence, in nats, nats per token and nats per byte; they are −inf where a
    document has no such choice. All have the same confidences at each λ of a task."""
    left_out: LeftOut
    gold_bytes: Ints | None = None  # [S] the UTF-8 bytes of the right choice's text; None where they are not known


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """The S complete documents of a continuation task at one λ."""

    document: Ints  # [S] the index of each document in Documents
    logprob: Floats  # [S] the log-probability of each continuation, in nats
    greedy: Bools  # [S] whether every token of the continuation is the most likely one; False where that is not decided
    decided: Bools  # [S] whether the table tells if the continuation is greedy
    left_out: LeftOut
    byte_counts: Ints  # [S] the UTF-8 bytes of each continuation


@dataclass(frozen=True, slots=True)
class _Rows:
    """The T committed rows of a task at one λ."""

    request: Ints  # [T] the request_id of each row
    logprob: Floats  # [T] the log-probability summed over the continuation, in nats
    lengths: Ints  # [T] the number of continuation tokens


def unconditional_scores(of: Ints, tokens: pa.Table, quarantine: pa.Table, lam: str, where: str) -> Unconditional:
    """Read what the U unconditional requests of a task came to at one λ.

    Args:
        of: [R] what `unconditional_of` returned.
        tokens: the committed rows of the unconditional requests, as schemas.TOKENS, their `request_id` from 0.
        quarantine: those of them that are quarantined, likewise.
        lam, where: as in `choice_scores`.

    Raises:
        LambdasweepError: the tables are damaged, as for `choice_scores`, or a request has no unconditional one.
    """
    if (of < 0).any():
        raise damaged_requests(where, f"request {int(np.argmax(of < 0))} has no unconditional request")
    count = int(of.max(initial=-1)) + 1
    rows = _rows(count, tokens, lam, where)
    logprob = np.full(count, np.nan)
    logprob[rows.request] = rows.logprob
    refused = np.zeros(count, np.bool_)
    refused[_request_ids(count, quarantine, where)] = True
    return Unconditional(logprob[of], (refused & np.isnan(logprob))[of])


def choice_scores(
    documents: Documents,
    tokens: pa.Table,
    quarantine: pa.Table,
    lam: str,
    where: str,
    unconditional: Unconditional | None = None,
) -> ChoiceScores:
    """Score the choices of every complete document of a task at one λ.

    A document is complete when all its requests are committed, the unconditional ones of its choices included. A document
    whose choices all have probability 0 is left out too, because a softmax over them does not exist; so is one with a choice
    that has probability 0 without the document, because what the document adds to it has no end.

    Args:
        documents: the task's documents.
        tokens: the committed rows at λ, as schemas.TOKENS, in any order.
        quarantine: the quarantined requests at λ, as schemas.QUARANTINE.
        lam: the canonical λ that the rows must carry.
        where: the words that name the run, the task and λ in messages.
        unconditional: what the choices' log-probabilities are without the documents; without it there is no `pmi`.

    Raises:
        LambdasweepError: the tables are damaged: they have a log-probability that is NaN or above 0, a continuation without
            tokens, a row of another λ or of no request, or two rows of one request.
    """
    rows = _rows(len(documents.of_request), tokens, lam, where)
    complete, left_out = _complete(documents, rows, quarantine, where, unconditional)
    shape = (len(documents.sizes), int(documents.sizes.max(initial=1)))
    row_scores = {
        "sum": rows.logprob,
        "tokens": rows.logprob / rows.lengths,
        "bytes": rows.logprob / documents.byte_counts[rows.request],
    }
    defined = complete.copy()
    if unconditional is not None:
        alone = unconditional.logprob[rows.request]
        defined[documents.of_request[rows.request][alone == -np.inf]] = False
        row_scores[PMI] = rows.logprob - np.where(alone == -np.inf, 0.0, alone)
    cells = documents.of_request[rows.request], documents.position[rows.request]
    padded = {}
    for confidence, of_rows in row_scores.items():
        padded[confidence] = np.full(shape, -np.inf)
        padded[confidence][cells] = of_rows
    # All confidences are then defined for the same documents: to divide by a finite number, or to subtract one, makes or
    # unmakes no −inf.
    defined &= (padded["sum"] > -np.inf).any(axis=1)
    return ChoiceScores(
        document=np.flatnonzero(defined),
        sizes=documents.sizes[defined],
        gold=documents.gold[defined],
        logits={confidence: array[defined] for confidence, array in padded.items()},
        left_out=LeftOut(left_out.quarantined, left_out.unfinished, int((complete & ~defined).sum())),
        gold_bytes=documents.byte_counts[documents.gold_requests[defined]],
    )


def continuation_scores(
    documents: Documents, continuations: Continuations, tokens: pa.Table, quarantine: pa.Table, lam: str, where: str
) -> ContinuationScores:
    """Score every complete document of a continuation task at one λ.

    A token is the most likely one where its rank is 1. Where the engine gave no rank, it is the most likely one if it equals
    the top-1 token: ranks are missing more often for tokens that are not the most likely ones, so leaving their documents
    out would inflate the accuracy. Where neither is known, the document is undecided, unless another of its tokens is known
    not to be the most likely one.

    The arguments are those of `choice_scores`, and `continuations` are the task's.

    Raises:
        LambdasweepError: the tables are damaged, as for `choice_scores`, or the columns of a row differ in length from each
            other or from the continuation.
    """
    rows = _rows(len(documents.of_request), tokens, lam, where)
    complete, left_out = _complete(documents, rows, quarantine, where)
    first, unknown = first_tokens(continuations, tokens, where)
    missed = _count(~first & ~unknown, rows) > 0
    order = np.argsort(rows.request)  # a document has one request, so the order of requests is that of documents
    return ContinuationScores(
        document=np.flatnonzero(complete),
        logprob=rows.logprob[order],
        greedy=(_count(first, rows) == rows.lengths)[order],
        decided=(missed | (_count(unknown, rows) == 0))[order],
        left_out=left_out,
        byte_counts=documents.byte_counts[rows.request[order]],
    )


def first_tokens(continuations: Continuations, tokens: pa.Table, where: str) -> tuple[Bools, Bools]:
    """Tell for every token of every row whether it is the most likely one, and whether that is unknown.

    Returns:
        Two arrays [sum of the rows' lengths], in the order of the rows. The first is False where the second is True.

    Raises:
        LambdasweepError: the columns of a row differ in length from each other or from the continuation.
    """
    ranks, top1_ids = one_chunk(tokens["ranks"]), one_chunk(tokens["top1_ids"])
    lengths = ints(pc.list_value_length(one_chunk(tokens["logprobs"])))
    for others in (ranks, top1_ids):
        if not np.array_equal(ints(pc.list_value_length(others)), lengths):
            raise _damaged(where, "ranks, top1_ids and logprobs differ in length")
    request = ints(tokens["request_id"])
    if not np.array_equal(continuations.lengths[request], lengths):
        raise _damaged(where, "a request is scored on more or fewer tokens than its continuation has")
    starts = np.cumsum(continuations.lengths) - continuations.lengths
    actual = continuations.token_ids[np.repeat(starts[request], lengths) + places(lengths)]
    rank = ints(pc.fill_null(ranks.flatten(), 0))
    top1 = ints(pc.fill_null(top1_ids.flatten(), -1))
    return np.where(rank == 0, top1 == actual, rank == 1), (rank == 0) & (top1 == -1)


def _rows(count: int, tokens: pa.Table, lam: str, where: str) -> _Rows:
    """Read the committed rows of `count` requests."""
    request = _request_ids(count, tokens, where)
    if (np.bincount(request) > 1).any():
        raise _damaged(where, "a request is scored twice")
    here = [pc.equal(tokens["point"], lam)]
    if not is_named(lam):
        here.append(pc.equal(tokens["lam"], pa.scalar(Decimal(lam), tokens["lam"].type)))
    if not all(pc.all(same, min_count=0, skip_nulls=False).as_py() for same in here):
        raise _damaged(where, "a row belongs to another λ")
    lists = one_chunk(tokens["logprobs"])
    lengths = ints(pc.list_value_length(lists))
    if (lengths == 0).any():
        raise _damaged(where, f"request {request[np.argmax(lengths == 0)]} is scored on no tokens")
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)  # a null becomes NaN
    owners = owners_of(lengths)
    bad = ~(values <= _ABOVE_0)
    if bad.any():
        raise _damaged(where, f"request {request[owners[np.argmax(bad)]]} has a log-probability that is NaN or above 0")
    # Each row is summed by itself: differences of one running sum would turn −inf into NaN and give equal choices unequal
    # scores.
    logprob = np.bincount(owners, weights=values, minlength=len(request)).astype(np.float64, copy=False)
    return _Rows(request, logprob, lengths)


def _complete(
    documents: Documents, rows: _Rows, quarantine: pa.Table, where: str, unconditional: Unconditional | None = None
) -> tuple[Bools, LeftOut]:
    """Return [D] which documents have all their requests scored, and how many of the others are left out why."""
    count = len(documents.sizes)
    complete = np.bincount(documents.of_request[rows.request], minlength=count) == documents.sizes
    quarantined = np.zeros(count, np.bool_)
    quarantined[documents.of_request[_request_ids(len(documents.of_request), quarantine, where)]] = True
    if unconditional is not None:
        complete[documents.of_request[np.isnan(unconditional.logprob)]] = False
        quarantined[documents.of_request[unconditional.quarantined]] = True
    quarantined &= ~complete
    return complete, LeftOut(int(quarantined.sum()), int((~complete & ~quarantined).sum()))


def _request_ids(count: int, table: pa.Table, where: str) -> Ints:
    ids = ints(table["request_id"])
    strange = (ids < 0) | (ids >= count)
    if strange.any():
        raise _damaged(where, f"request {ids[np.argmax(strange)]} is not in the request table")
    return ids


def _count(flags: Bools, rows: _Rows) -> Ints:
    """Return [T] how many flags of each row's tokens are set; `flags` has one for each token of all rows."""
    return np.bincount(owners_of(rows.lengths)[flags], minlength=len(rows.request))


def _damaged(where: str, what: str) -> LambdasweepError:
    return LambdasweepError(f"{where}: {what}. {_TOKENS}")
