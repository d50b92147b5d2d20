"""`lambdasweep status` says what is done of a batch. It reads names, footers and quarantined rows only, and needs no Ray."""

from collections import Counter
from collections.abc import Iterator

from contract.location import read_metadata, read_table
from lambdasweep.batch.identity import read_score
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.monitor.heartbeat import DriverView
from lambdasweep.monitor.status import damaged, driver_lines

_SHOWN = 5


def describe(out: ScoreDir) -> Iterator[str]:
    """Yield the lines of the status.

    Raises:
        InputError: score.json is damaged.
    """
    score = read_score(out)
    made, engine = score.made, score.made.engine
    for role, parent in made.pair.items():
        yield f"{role:8} {parent.source}"
    if score.lam is not None:
        yield f"lambda   {score.lam}"
    yield (
        f"engine   vLLM {made.versions.get('vllm', '?')} on {engine['device']}, {engine['dtype']}, "
        f"TP {engine['tensor_parallel']}, PP {engine.get('pipeline_parallel', 1)}"
    )
    size = sum(file["size"] for file in score.files)
    yield f"input    {len(score.files)} files, {size / 1e6:.1f} MB, {score.rows} rows"
    done = out.parts("scores")
    rows = sum(read_metadata(out.part("scores", shard)).num_rows for shard in done)
    reasons: Counter[str] = Counter()
    for shard in out.parts("quarantine") & done:
        reasons.update(read_table(out.part("quarantine", shard), columns=["reason"])["reason"].to_pylist())
    yield f"{rows} rows scored, {reasons.total()} quarantined"
    for reason, count in reasons.most_common(_SHOWN):
        yield f"  quarantined: {count} × {reason}"
    yield from damaged(out)
    yield f"{len(done)} units done, {score.units - len(done)} left"
    view = DriverView(out)
    view.look_at_driver()
    yield from driver_lines(view)
