"""score.json says what a directory of scores was started with; it never changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.errors import RunMismatchError
from contract.records import SweepRecord, sweep_of, whole
from lambdasweep import record
from lambdasweep.batch.files import InputFile
from lambdasweep.batch.scoredir import ScoreDir

# A single model has no line and no choice of a tokenizer.
_OF_A_PAIR = ("line", "tokenizer")


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """Says what was scored, and with what."""

    made: SweepRecord
    """The checkpoints, engine and versions; of a single model its `pair` has the role `model` alone."""
    lam: str | None  # the canonical point of a pair; None of a single model
    columns: Mapping[str, Any]  # the names of the columns that were read
    rows: int
    units: int
    files: tuple[Mapping[str, Any], ...]
    """The input files in the order of their rows: path, size (bytes), rows, footer_sha256; partition where there is one."""

    def to_json(self) -> dict[str, Any]:
        made = self.made.to_json()
        if self.lam is None:
            made = {name: value for name, value in made.items() if name not in _OF_A_PAIR}
        return {
            **made,
            "lam": self.lam,
            "columns": dict(self.columns),
            "rows": self.rows,
            "units": self.units,
            "files": [dict(file) for file in self.files],
        }


def file_record(file: InputFile) -> dict[str, Any]:
    """Return what score.json says of an input file."""
    said = {"path": file.path, "size": file.size, "rows": file.rows, "footer_sha256": file.footer_sha256}
    return said | ({"partition": dict(file.partition)} if file.partition else {})


def read_score(out: ScoreDir) -> ScoreRecord:
    """Read score.json.

    Raises:
        InputError: `out` holds no scores, or the file is damaged.
    """
    value = out.score()
    made = sweep_of(out.score_json, value)
    return whole(
        out.score_json,
        lambda: ScoreRecord(
            made, value["lam"], value["columns"], value["rows"], value["units"], tuple(map(dict, value["files"]))
        ),
    )


def check(out: ScoreDir, before: ScoreRecord, now: ScoreRecord) -> None:
    """Hold what is asked for now against what the directory was started with; files may have moved, all together.

    Raises:
        RunMismatchError: naming every difference.
    """
    problems = record.differences("", {**before.to_json(), "files": None}, {**now.to_json(), "files": None})
    old, new = (
        {file["path"]: (file["size"], file["footer_sha256"], file.get("partition")) for file in one.files}
        for one in (before, now)
    )
    if list(old.values()) != list(new.values()):
        problems += [f"{path} is not among the files now" for path in old if path not in new]
        problems += [f"{path} is new among the files" for path in new if path not in old]
        problems += [
            f"{path} was {old[path][0]} bytes and is {new[path][0]} now, or has another footer"
            for path in old
            if path in new and old[path] != new[path]
        ]
        if old == new:
            problems.append("the files come in another order")
    if problems:
        raise RunMismatchError(
            f"{out.root} holds scores of something else; give another --out, or what it was started with", problems
        )
