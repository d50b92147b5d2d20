"""This module knows the output directory of `lambdasweep score`.

OUT/score.json                        the identity: model, λ, engine, versions, input files; written once
OUT/repeated_ids.parquet              rows whose id stands in more than one row; written once, before the first unit
OUT/scores/shard-0000017.parquet      one file a unit, in input order
OUT/quarantine/shard-0000017.parquet  what could not be scored, and why
OUT/receipts/shard-0000017.json       times, hosts, caches; not part of the results
OUT/driver.json                       how the driver does; not either
"""

import re
from typing import Any

from contract.location import Location
from contract.rundir import RunDir, names

_SHARD = re.compile(r"shard-(\d{7,})\.parquet")


class ScoreDir(RunDir):
    """Names and reads the files of one output directory."""

    @property
    def score_json(self) -> Location:
        return self.root / "score.json"

    @property
    def repeated_ids(self) -> Location:
        return self.root / "repeated_ids.parquet"

    def exists(self) -> bool:
        return self.score_json.is_file()

    def score(self) -> dict[str, Any]:
        """Return score.json as it is; `lambdasweep.batch.identity.read_score` makes a record of it.

        Raises:
            InputError: `root` holds no scores, or the file is damaged.
        """
        return self._json(self.score_json, {"engine", "versions", "files", "lam"})

    def part(self, kind: str, shard: int) -> Location:
        """Path of one unit's file; `kind` is scores, quarantine or receipts. Wide enough that names sort as rows do."""
        return self.root / kind / f"shard-{shard:07d}.{'json' if kind == 'receipts' else 'parquet'}"

    def parts(self, kind: str) -> set[int]:
        """Return the numbers of the units whose `kind` file is committed."""
        folder = self.root / kind
        return {
            int(match[1])
            for name in names(folder)
            if (match := _SHARD.fullmatch(name)) and self.is_whole(folder / name)
        }

    def all_committed(self, kind: str = "scores") -> dict[tuple[str, str], set[int]]:
        """Return the same as `parts`, in the form that a run directory has it."""
        return {("scores", ""): self.parts(kind)}
