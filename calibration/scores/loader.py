"""A task of a run is read one λ at a time: its tables become scores of documents and of tokens."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from calibration.scores.documents import (
    CONTINUATION_COLUMNS,
    REQUEST_COLUMNS,
    continuations_of,
    documents_of,
    unconditional_of,
)
from calibration.scores.per_document import (
    CONFIDENCES,
    PMI,
    ChoiceScores,
    ContinuationScores,
    choice_scores,
    continuation_scores,
    unconditional_scores,
)
from calibration.scores.per_token import TokenScores, token_scores
from contract.errors import LambdasweepError
from contract.rundir import RunDir
from contract.schemas import of_documents
from contract.whole_tables import read_or_problem


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The scores of a task's documents and tokens at one λ."""

    lam: str  # the canonical point
    scores: ChoiceScores | ContinuationScores
    token_scores: TokenScores | None  # None where they were not asked for


class Shelf:
    """Keeps scores of documents that are asked for again, up to a number of bytes; what has no room is read again."""

    def __init__(self, nbytes: int = 1 << 29) -> None:
        self._left = nbytes
        self._kept: dict[tuple[str, str], ChoiceScores] = {}

    def keep(self, task: str, lam: str, scores: ChoiceScores) -> None:
        """Keep the scores of a task at a λ if there is room."""
        size = sum(rows.nbytes for rows in scores.logits.values())
        if size <= self._left and (task, lam) not in self._kept:
            self._left -= size
            self._kept[task, lam] = scores

    def take(self, task: str, lam: str) -> ChoiceScores | None:
        """Return the scores of a task at a λ if they were kept."""
        return self._kept.get((task, lam))


class Loader:
    """Reads the λs of one task; the requests, which are the same at all λs, are read once."""

    def __init__(self, run: RunDir, task: str, shelf: Shelf | None = None) -> None:
        """Read the task's requests; scores of choices are kept on the shelf, and taken from it where no tokens are wanted.

        Raises:
            LambdasweepError: the requests are missing or damaged; the message names the run and the task.
        """
        self._run, self._task, self._shelf = run, task, shelf
        self._where = f"{run.root}: task {task!r}"
        self._path = run.requests(task)
        if not self._path.is_file():
            raise LambdasweepError(
                f"{self._where}: {self._path} is missing: restore it, or run the same sweep again to write it"
            )
        table, problem = read_or_problem(self._path)
        if table is None:
            raise LambdasweepError(f"{self._path} {problem}: run the same sweep again, which writes it anew")
        own = of_documents(table)
        self.documents = documents_of(own.select(list(REQUEST_COLUMNS)), self._where)
        self._continuations = continuations_of(own.select(list(CONTINUATION_COLUMNS)))
        self._doc_ids = own["doc_id"]
        self._unconditional_of = None
        if own.num_rows < table.num_rows:
            alone = continuations_of(table.slice(own.num_rows).select(list(CONTINUATION_COLUMNS)))
            self._unconditional_of = unconditional_of(self._continuations, alone)

    @property
    def confidences(self) -> tuple[str, ...]:
        """Return the confidences in choices that the task's scores have."""
        return CONFIDENCES if self._unconditional_of is None else (*CONFIDENCES, PMI)

    def load(self, lam: str, tokens: bool = True) -> TaskScores:
        """Read what is committed at a λ, with the scores of its tokens if they are asked for.

        Raises:
            LambdasweepError: a table is damaged; the message names the run, the task and λ.
        """
        kept = self._shelf.take(self._task, lam) if self._shelf and not tokens else None
        if kept is not None:
            return TaskScores(lam, kept, None)
        tables = self._run.tokens(self._task, lam), self._run.quarantine(self._task, lam)
        folder = self._run.unit("tokens", self._task, lam, 0).parent
        where = f"{self._where} (tokens/{folder.parent.name}/{folder.name}) at λ = {lam}"
        unconditional = None
        if self._unconditional_of is not None:
            count = len(self.documents.of_request)
            scored, refused = (_from(table, count) for table in tables)
            unconditional = unconditional_scores(self._unconditional_of, scored, refused, lam, where)
            scored, refused = (table.filter(pc.less(table["request_id"], count)) for table in tables)
            tables = scored, refused
        scores: ChoiceScores | ContinuationScores
        if self.documents.is_continuation:
            scores = continuation_scores(self.documents, self._continuations, *tables, lam, where)
        else:
            scores = choice_scores(self.documents, *tables, lam, where, unconditional)
        if self._shelf and isinstance(scores, ChoiceScores):
            self._shelf.keep(self._task, lam, scores)
        of_tokens = token_scores(self.documents, self._continuations, tables[0], where) if tokens else None
        return TaskScores(lam, scores, of_tokens)

    def doc_ids(self) -> list[str]:
        """Return the names of the D documents."""
        names = self._doc_ids.to_pylist()
        return [name for name, place in zip(names, self.documents.position.tolist(), strict=True) if place == 0]


def _from(table: pa.Table, first: int) -> pa.Table:
    """Return the rows of the requests from `first` on, which are then counted from 0."""
    rows = table.filter(pc.greater_equal(table["request_id"], first))
    place = rows.schema.get_field_index("request_id")
    return rows.set_column(place, rows.schema.field(place), pc.subtract(rows["request_id"], first))
