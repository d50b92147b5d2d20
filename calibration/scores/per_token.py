"""Tables become arrays over tokens: how probable the most likely next token was, and whether it is the actual one."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from calibration.arrays import Bools, Floats, Ints
from calibration.scores.documents import Continuations, Documents
from calibration.scores.per_document import first_tokens


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The K tokens at one λ for which the engine says whether they are the most likely one."""

    document: Ints  # [K] the index of each token's document in Documents
    confidence: Floats  # [K] the probability of the most likely token
    correct: Bools  # [K] whether the most likely token is the actual one

    def of(self, documents: Ints) -> "TokenScores":
        """Return the tokens of these documents [S]; `document` is then the place among these documents."""
        kept = np.isin(self.document, documents)
        order = np.argsort(documents)
        places = order[np.searchsorted(documents, self.document[kept], sorter=order)]
        return TokenScores(places, self.confidence[kept], self.correct[kept])


def token_scores(documents: Documents, continuations: Continuations, tokens: pa.Table, where: str) -> TokenScores:
    """Collect the continuation tokens of the right choices of a task at one λ; in a continuation task these are all tokens.

    The tokens of wrong choices are not text that a model should expect, and a document's choices often share their
    contexts: if all four choices of a letters task counted, the most likely token could be the actual one for one choice in
    four at best.

    The arguments are those of `per_document.continuation_scores`.

    Raises:
        LambdasweepError: the columns of a row differ in length from each other or from the continuation.
    """
    request = tokens["request_id"].to_numpy()
    is_gold = documents.position[request] == documents.gold[documents.of_request[request]]
    rows = tokens.filter(pa.array(is_gold))
    first, unknown = first_tokens(continuations, rows, where)
    logprob = rows["top1_logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    request = rows["request_id"].to_numpy()
    document = np.repeat(documents.of_request[request], continuations.lengths[request])
    known = ~unknown & np.isfinite(logprob)  # a null has become NaN
    probability = np.minimum(np.exp(logprob[known]), 1.0)  # rounded logits can give 1 + 1e-7
    return TokenScores(document[known], probability, first[known])
