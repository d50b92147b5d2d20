"""Input files of batches become requests, and scores become output files. No engine is started."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import schemas
from contract.commit import commit_table
from contract.errors import InputError
from contract.units import Unit
from lambdasweep.batch.files import Columns, open_inputs
from lambdasweep.batch.reader import Reader
from lambdasweep.batch.repeats import repeated_rows
from lambdasweep.batch.rows import build, score_table
from lambdasweep.batch.scoredir import ScoreDir
from lambdasweep.batch.source import ParquetSource
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.formats import render
from lambdasweep.tasks.requests import build_requests
from lambdasweep.tasks.tokens import load_tokenizer
from merge.checkpoint import open_checkpoint
from merge.fingerprints import fingerprint
from merge.remote_parent import describe_parent
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import Result, contents

TEXT = Columns("id", pa.int64(), "prompt", "continuation")
IDS = Columns("id", pa.int64(), "prompt_token_ids", "continuation_token_ids")
BOS = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model", seed=0)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return load_tokenizer(model)


def write(path: Path, row_group_size: int | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def requests_of(built: Any) -> list[tuple[int, list[int], int]]:
    """Return the owner, tokens and start of each request."""
    table = built.requests
    assert table.schema.equals(schemas.REQUESTS)
    assert table["request_id"].to_pylist() == list(range(table.num_rows))
    return list(
        zip(
            built.owner.tolist(),
            table["token_ids"].to_pylist(),
            table["continuation_start"].to_pylist(),
            strict=True,
        )
    )


# Rows → requests


def test_pairs_are_encoded_as_tasks_do_it(tokenizer: Any) -> None:
    prompts, continuations = ["the cat ", "the cat", "", "the cat"], ["sat", " sat", "x", ""]
    rows = pa.table({"id": [1, 2, 3, 4], "prompt": prompts, "continuation": continuations})
    built = build(rows, TEXT, {}, tokenizer, 256)
    whole = tokenizer("the cat sat")["input_ids"]
    context = len(tokenizer("the cat")["input_ids"])
    assert (
        requests_of(built)
        == [
            (0, whole, context),  # white space at the end of the prompt counts as part of the continuation
            (1, whole, context),
            (2, [BOS, *tokenizer("x")["input_ids"]], 1),
            (3, whole[:context], context),  # there is nothing to score, so that the scorer quarantines it
        ]
    )
    assert built.requests["doc_id"].to_pylist() == ["0", "0", "2", "3"]


def test_rows_of_a_task_are_the_requests_of_its_sweep(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"query": f"Number {n}? " + "so " * n, "choices": [f"a {n}", "the b", "c"][: 2 + n % 2], "gold": 0}
        for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for form in ("cloze", "letters"):
        spec = TaskSpec("rows", tmp_path / "rows.jsonl", format=form)
        theirs = build_requests(spec, tokenizer).table
        prompts = [render(document, "choices", form) for document in read_documents(spec).documents]
        pairs = [(prompt.context, text) for prompt in prompts for text in prompt.continuations]
        table = pa.table(
            {"id": range(len(pairs)), "prompt": [a for a, _ in pairs], "continuation": [b for _, b in pairs]}
        )
        ours = build(table, TEXT, {}, tokenizer, 256).requests
        for column in ("request_id", "token_ids", "continuation_start"):
            assert ours[column].to_pylist() == theirs[column].to_pylist()
        of_doc = [[row.index(doc) for doc in row] for row in (ours["doc_id"].to_pylist(), theirs["doc_id"].to_pylist())]
        assert of_doc[0] == of_doc[1]


def test_token_ids_are_taken_as_they_are(tokenizer: Any) -> None:
    rows = pa.table({"id": [1, 2], "prompt_token_ids": [[5, 6], [7]], "continuation_token_ids": [[8], [9, 10]]})
    built = build(rows, IDS, {}, tokenizer, 256)
    assert requests_of(built) == [(0, [5, 6, 8], 2), (1, [7, 9, 10], 1)]


@pytest.mark.parametrize("front", [[], [BOS]])
def test_a_whole_prompt_is_scored_behind_one_bos_in_windows(tokenizer: Any, front: list[int]) -> None:
    ids = list(range(10, 21))
    columns = Columns("id", pa.int64(), "prompt_token_ids", None)
    rows = pa.table({"id": [1, 2], "prompt_token_ids": [front + ids, [*front, 30]]})
    built = build(rows, columns, {}, tokenizer, 6)  # windows have 4 tokens that are scored, and one before them
    assert requests_of(built) == [
        (0, [BOS, 10, 11, 12, 13], 1),
        (0, [13, 14, 15, 16, 17], 1),
        (0, [16, 17, 18, 19, 20], 2),  # the last window is as long as the others
        (1, [BOS, 30], 1),
    ]
    scored = [token for _, tokens, start in requests_of(built)[:3] for token in tokens[start:]]
    assert scored == ids


def test_a_text_gets_the_tokens_of_its_ids(tokenizer: Any) -> None:
    text = "the rain in spain"
    ids = tokenizer(text)["input_ids"]
    for given in (text, "<s>" + text):
        built = build(
            pa.table({"id": [1], "prompt": [given]}), Columns("id", pa.int64(), "prompt", None), {}, tokenizer, 256
        )
        assert requests_of(built) == [(0, [BOS, *ids], 1)]


def test_what_cannot_be_a_request_is_refused_with_its_reason(tokenizer: Any) -> None:
    bad_text = pa.array([b"a", b"b", b"c", b"\xff", b"d", None, b"e"], pa.binary()).view(pa.string())
    rows = pa.table(
        {
            "id": [1, None, 3, 4, 5, 6, 7],
            "prompt": bad_text,
            "continuation": ["x", "x", "x", "x", None, "x", "x"],
        }
    )
    built = build(rows, TEXT, {2: "repeated id"}, tokenizer, 256)
    assert built.refused == {
        1: "null id",
        2: "repeated id",
        3: "prompt is not UTF-8",
        4: "null continuation",
        5: "null prompt",
    }
    assert built.owner.tolist() == [0, 6]

    lists = pa.array([[1], [1, None], [-1], [1 << 40], []], pa.list_(pa.int64()))
    rows = pa.table({"id": range(5), "prompt_token_ids": lists})
    built = build(rows, Columns("id", pa.int64(), "prompt_token_ids", None), {}, tokenizer, 256)
    assert built.refused == {
        1: "null in prompt_token_ids",
        2: "a token id outside the vocabulary",
        3: "a token id outside the vocabulary",
        4: "empty prompt: no token to score",
    }
    assert built.owner.tolist() == [0]


# Scores → rows


def test_scores_come_back_as_rows_and_a_row_with_a_quarantined_window_has_none(tokenizer: Any) -> None:
    columns = Columns("key", pa.string(), "prompt_token_ids", None)
    lists = [[10, 11, 12, 13, 14], None, [20, 21, 22, 23, 24, 25], [30]]
    rows = pa.table({"key": ["a", "b", "c", "d"], "prompt_token_ids": lists})
    built = build(rows, columns, {}, tokenizer, 6)
    assert built.owner.tolist() == [0, 0, 2, 2, 3]
    values = {0: [-1.0, -2.0, -3.0, -4.0], 1: [-5.0], 2: [-9.0] * 4, 4: [-0.5]}  # request 3 is quarantined
    tokens = pa.table(
        {
            "request_id": list(values),
            **schemas.place_columns("0", 4),
            "logprobs": list(values.values()),
            "ranks": [[int(-x) + 1 for x in row] for row in values.values()],
            "top1_ids": [[7] * len(row) for row in values.values()],
            "top1_logprobs": [[-0.25] * len(row) for row in values.values()],
        },
        schema=schemas.TOKENS,
    )
    quarantine = pa.table({"request_id": [3], "reason": ["because"]}, schema=schemas.QUARANTINE)
    scores, left_out = score_table(rows, columns, built, tokens, quarantine, "f.parquet", 100)
    assert scores.to_pylist() == [
        {
            "key": "a",
            "logprobs": [-1.0, -2.0, -3.0, -4.0, -5.0],
            "ranks": [2, 3, 4, 5, 6],
            "top1_ids": [7] * 5,
            "top1_logprobs": [-0.25] * 5,
            "sum_logprob": -15.0,
            "num_tokens": 5,
        },
        {
            "key": "d",
            "logprobs": [-0.5],
            "ranks": [1],
            "top1_ids": [7],
            "top1_logprobs": [-0.25],
            "sum_logprob": -0.5,
            "num_tokens": 1,
        },
    ]
    assert left_out.to_pylist() == [
        {"key": "b", "file": "f.parquet", "row": 101, "reason": "null prompt_token_ids"},
        {"key": "c", "file": "f.parquet", "row": 102, "reason": "because"},
    ]


def test_a_unit_of_nothing_but_bad_rows_has_empty_scores(tokenizer: Any) -> None:
    rows = pa.table({"id": pa.array([None, None], pa.int64()), "prompt": ["a", "b"], "continuation": ["c", "d"]})
    built = build(rows, TEXT, {}, tokenizer, 256)
    empty = schemas.TOKENS.empty_table(), schemas.QUARANTINE.empty_table()
    scores, left_out = score_table(rows, TEXT, built, *empty, "f", 0)
    assert (scores.num_rows, left_out.num_rows) == (0, 2)
    assert scores.schema.equals(schemas.batch_scores("id", pa.int64()))


# Units and rows of a file


def test_units_are_runs_of_row_groups_or_parts_of_one(tmp_path: Path) -> None:
    ids = iter(range(10_000))

    def file(name: str, *groups: tuple[int, int]) -> None:
        """Write row groups of (rows, tokens a row)."""
        schema = pa.schema([("id", pa.int64()), ("prompt_token_ids", pa.list_(pa.int32()))])
        with pq.ParquetWriter(tmp_path / name, schema) as writer:
            for rows, tokens in groups:
                table = {"id": [next(ids) for _ in range(rows)], "prompt_token_ids": [[5] * tokens] * rows}
                writer.write_table(pa.table(table, schema=schema))

    file("a.parquet", (4, 10), (4, 10), (4, 10), (40, 10), (1, 10))
    file("b.parquet", (1, 1000))
    inputs = open_inputs([str(tmp_path)], "id", 100)
    assert [Path(one.path).name for one in inputs.files] == ["a.parquet", "b.parquet"]
    assert inputs.shards == ((0, 8), (8, 12), (12, 22), (22, 32), (32, 42), (42, 52), (52, 53), (53, 54))
    assert inputs.costs == (80, 40, 100, 100, 100, 100, 10, 1000)
    assert inputs.rows == 54
    assert inputs.scored == 53 * 10 + 1000

    write(
        tmp_path / "pairs" / "c.parquet", id=[1, 2], prompt_token_ids=[[5] * 90] * 2, continuation_token_ids=[[6], [7]]
    )
    inputs = open_inputs([str(tmp_path / "pairs")], "id", 1000)
    assert (inputs.costs, inputs.scored) == ((182,), 2)


def test_rows_are_read_in_any_order_and_on_from_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", 30, id=list(range(100)), prompt=[f"{n}" for n in range(100)])
    inputs = open_inputs([str(path)], "id", 1000)
    reader = Reader(inputs.files[0], ["id", "prompt"])
    reader._batch_rows = 7
    opened = []
    real = reader._parquet.iter_batches
    monkeypatch.setattr(
        reader, "_parquet", SimpleNamespace(iter_batches=lambda *a, **k: opened.append(1) or real(*a, **k))
    )
    for first, end in [(0, 10), (10, 11), (20, 30), (5, 9), (25, 65), (90, 100), (0, 100)]:
        table = reader.rows(first, end)
        assert table["id"].to_pylist() == list(range(first, end))
        assert table["prompt"].to_pylist() == [f"{n}" for n in range(first, end)]
    assert len(opened) == 5  # the first three runs are one pass


LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 2)]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_of_every_layout_is_the_same_text(tokenizer: Any, tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["the cat", "ünï", "the cat"])
    path = write(tmp_path / "a.parquet", id=texts.cast(kind), prompt=texts.cast(kind), continuation=texts.cast(kind))
    (file,) = (inputs := open_inputs([str(path)], "id", 1000)).files
    assert inputs.columns == Columns("id", pa.string(), "prompt", "continuation")
    rows = Reader(file, ["id", "prompt", "continuation"]).rows(0, 3)
    plain = pa.table({"id": texts, "prompt": texts, "continuation": texts})
    ours, theirs = (build(table, inputs.columns, {}, tokenizer, 256) for table in (rows, plain))
    assert requests_of(ours) == requests_of(theirs)
    assert repeated_rows(inputs.files, inputs.columns).tolist() == [0, 2]
    scores = schemas.TOKENS.empty_table()
    _, refused = score_table(
        rows, inputs.columns, replace(ours, refused={1: "x"}), scores, schemas.QUARANTINE.empty_table(), "", 0
    )
    assert refused["id"].to_pylist() == ["ünï"]


def test_a_text_view_that_is_not_utf8_is_refused_alone(tokenizer: Any) -> None:
    broken = pa.array([b"fine", b"\xff"], pa.binary()).cast(pa.binary_view())
    rows = pa.table({"id": [1, 2], "prompt": broken.view(pa.string_view())})
    built = build(rows, Columns("id", pa.int64(), "prompt", None), {}, tokenizer, 256)
    assert built.refused == {1: "prompt is not UTF-8"}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_layout_are_the_same_ids(
    tokenizer: Any, tmp_path: Path, kind: Callable[..., pa.DataType]
) -> None:
    ids = pa.array([[5, 6], [7, 8]], kind(pa.int64()))
    path = write(tmp_path / "a.parquet", id=[1, 2], prompt_token_ids=ids, continuation_token_ids=ids)
    (file,) = (inputs := open_inputs([str(path)], "id", 1000)).files
    rows = Reader(file, ["id", "prompt_token_ids", "continuation_token_ids"]).rows(0, 2)
    built = build(rows, inputs.columns, {}, tokenizer, 256)
    assert requests_of(built) == [(0, [5, 6, 5, 6], 2), (1, [7, 8, 7, 8], 2)]


def test_what_others_keep_in_a_directory_is_left_out(tmp_path: Path) -> None:
    import pyarrow.dataset

    for name in ("part-0", ".part-1", "_metadata", "_temporary/0/part-2", ".hidden/part-3", "more/part-4"):
        write(tmp_path / "data" / f"{name}.parquet", id=[len(name)], prompt=["x"])
    theirs = sorted(pyarrow.dataset.dataset(tmp_path / "data").files)
    for request in ("data", "data/**/*.parquet"):
        ours = open_inputs([str(tmp_path / request)], "id", 1000).files
        assert [file.path for file in ours] == sorted(theirs)
    # A hidden file that is named is taken.
    (asked,) = open_inputs([str(tmp_path / "data" / "_meta*.parquet")], "id", 1000).files
    assert asked.path.endswith("_metadata.parquet")


def test_folders_of_a_partition_are_columns(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow.dataset

    for prompt, first in (("the%20cat", 1), ("a dog", 3)):
        folder = tmp_path / "data" / "split=x" / f"prompt={prompt}"
        write(folder / "a.parquet", id=[first, first + 1], continuation=[" sat", " ran"])
    inputs = open_inputs([str(tmp_path / "data")], "id", 1000)
    ours = [Reader(file, ["id", "prompt", "continuation"]).rows(0, 2) for file in inputs.files]
    theirs = pyarrow.dataset.dataset(tmp_path / "data", partitioning="hive").to_table()
    assert pa.concat_tables(ours).sort_by("id") == theirs.select(["id", "prompt", "continuation"]).cast(
        ours[0].schema
    ).sort_by("id")
    assert inputs.columns.texts == ["prompt", "continuation"]
    with pytest.raises(InputError) as refused:
        open_inputs([str(tmp_path / "data")], "split", 1000)
    assert "split is the name of a folder, so all of its rows have one id" in refused.value.problems[0]


# Repeated ids


@pytest.mark.parametrize("rows_in_memory", [1 << 20, 7])
@pytest.mark.parametrize("kind", ["int", "text", "unsigned"])
def test_repeated_ids_are_found_across_files_whatever_fits_into_memory(
    tmp_path: Path, rows_in_memory: int, kind: str
) -> None:
    numbers: list[int | None] = [*range(-50, 50), None, 7, None, -50, 7, 1 << 40, (1 << 40) + 1]
    make: Callable[[int], Any] = {"int": int, "text": str, "unsigned": lambda n: n % (1 << 64)}[kind]
    values = [None if n is None else make(n) for n in numbers]
    type_ = {"int": pa.int64(), "text": pa.string(), "unsigned": pa.uint64()}[kind]
    write(tmp_path / "a.parquet", id=pa.array(values[:60], type_), prompt=["x"] * 60)
    write(tmp_path / "b.parquet", id=pa.array(values[60:], type_), prompt=["x"] * (len(values) - 60))
    inputs = open_inputs([str(tmp_path)], "id", 1000)
    found = repeated_rows(inputs.files, inputs.columns, rows_in_memory)
    expected = [row for row, value in enumerate(values) if value is not None and values.count(value) > 1]
    assert found.tolist() == expected
    assert expected == [0, 57, 101, 103, 104]


# A unit through its source


def test_a_source_goes_to_another_process_and_reads_its_rows_there(
    tmp_path: Path, model: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    write(tmp_path / "in" / "a.parquet", id=[1, 2, 3], prompt=["a", "b", "c"], continuation=[" x"] * 3)
    write(tmp_path / "in" / "b.parquet", id=[4, 5, 1], prompt=["d", "e", "f"], continuation=[" x"] * 3)
    inputs = open_inputs([str(tmp_path / "in")], "id", 1000)
    assert inputs.shards == ((0, 3), (3, 6))
    out = ScoreDir(tmp_path / "out")
    commit_table(out.repeated_ids, pa.table({"row": repeated_rows(inputs.files, inputs.columns)}))
    checkpoint = open_checkpoint(str(model), "model")
    parent = describe_parent(checkpoint, "model", fingerprint(checkpoint, "model"))
    paths = tuple(replace(file, path=os.path.relpath(file.path, tmp_path)) for file in inputs.files)
    given = ParquetSource(str(out.root), str(tmp_path), paths, inputs.columns, parent, 256)
    source = pickle.loads(pickle.dumps(given))
    work = source.open(Unit("scores", "0", 1, 3, 6, 10))
    assert work.rows["id"].to_pylist() == [4, 5, 1]
    assert work.built.refused == {2: "repeated id"}
    assert source.path("tokens", Unit("scores", "0", 1, 3, 6, 10)) == out.part("scores", 1)
    work = source.open(Unit("scores", "0", 0, 0, 3, 10))
    assert work.built.refused == {0: "repeated id"}
    assert (work.file, work.first_row) == ("in/a.parquet", 0)
    # A unit that is split does a part of itself, and all of itself without an offender.
    part = Unit("scores", "0", 0, 1, 3, 10)
    assert list(source.documents(part)) == [1, 2]
    assert source.open(part).rows["id"].to_pylist() == [2, 3]
    work = source.open(Unit("scores", "0", 1, 3, 6, 10, offenders=((4, "it kills"),)))
    assert work.built.refused == {1: "it kills", 2: "repeated id"}
    assert work.built.owner.tolist() == [0]


def test_a_file_that_changes_or_is_damaged_on_the_way_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=list(range(1000)), prompt=[f"text {n}" * 5 for n in range(1000)])
    (file,) = open_inputs([str(path)], "id", 1 << 20).files
    data = bytearray(path.read_bytes())
    data[100:200] = bytes(100)  # the footer is as it was
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        Reader(file, ["id", "prompt"]).rows(0, 1000)
    write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    with pytest.raises(InputError, match="was changed"):
        Reader(file, ["id", "prompt"])
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Reader(file, ["id", "prompt"])


# The command line


@pytest.fixture
def score(lambdasweep: Callable[..., Result], model: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(*requests: object, **changes: object) -> Result:
        values = {"model": model, "out": tmp_path / "out", **changes}
        line = [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]
        for request in requests:
            line += ["--requests", request]
        return lambdasweep("score", *line)

    return run


def test_all_problems_of_all_files_at_once(score: Callable[..., Result], tmp_path: Path) -> None:
    data = tmp_path / "in"
    write(data / "a.parquet", id=[1], prompt=["x"])
    write(data / "b.parquet", id=[1.5], prompt=[1])
    write(data / "c.parquet", key=["x"], prompt_token_ids=[["x"]], continuation=["x"])
    write(data / "d.parquet", id=["x"], prompt=["x"])
    write(data / "e.parquet", id=[1], prompt=["x"], prompt_token_ids=[[1]])
    (data / "f.parquet").write_bytes(b"PAR1 not at all")
    (data / "g.parquet").write_bytes((data / "a.parquet").read_bytes()[:-20])
    write(data / "h.parquet", id=[1], continuation=["x"])
    before = contents(tmp_path)
    result = score(data, data / "a.parquet", data / "none-*.parquet", model=tmp_path / "no-model")
    assert result.code == 2
    assert contents(tmp_path) == before
    told = [problem.replace(f"{data}/", "") for problem in result.problems]
    assert told == [
        f"the model checkpoint {tmp_path}/no-model does not exist: give a directory or a hub id like org/name",
        *(
            f"--requests cannot be scored: {problem}"
            for problem in (
                "none-*.parquet: no file matches it: give a file, or a directory or a glob of some",
                "a.parquet is given twice",
                "b.parquet: id is double: give integers or text as ids",
                "b.parquet: prompt is int64: give text",
                "c.parquet has no column id: name the id column with --id (it has key, prompt_token_ids, continuation)",
                "c.parquet has prompt_token_ids and continuation: give both as text or both as token ids",
                "c.parquet: prompt_token_ids is list<element: string>: give lists of integers",
                "d.parquet has id (string) and prompt, and a.parquet has id (int64) and prompt: score them apart",
                "e.parquet has both prompt and prompt_token_ids: give one of them",
                "f.parquet is no Parquet file, or is truncated (15 bytes)",
                f"g.parquet is no Parquet file, or is truncated ({(data / 'g.parquet').stat().st_size} bytes)",
                "h.parquet has neither prompt nor prompt_token_ids: give one of them",
            )
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": None}, "--model is missing: give a checkpoint, or a point of a pair as --base, --aligned and --lam"),
        (
            {"model": None, "base": "b"},
            "--aligned, --lam are missing: a point of a pair takes --base, --aligned and --lam",
        ),
        (
            {"model": None, "base": "b", "lam": "1"},
            "--aligned is missing: a point of a pair takes --base, --aligned and",
        ),
        (
            {"model": None, "lam": "1"},
            "--base, --aligned are missing: a point of a pair takes --base, --aligned and --lam",
        ),
        ({"lam": "0.5"}, "--lam is of a pair: leave out --model, or it"),
        (
            {"lam": "0.5", "base": "b", "vocab": "shared"},
            "--base, --lam, --vocab are of a pair: leave out --model, or them",
        ),
        ({"engine": "fo=1"}, "--engine fo: vLLM has no such argument"),
        ({"model": None, "base": "b", "aligned": "a", "lam": "0:1:0.5"}, "--lam 0:1:0.5 is 3 points: give one"),
        ({"out": None}, "--out is missing"),
        ({"tp": 0}, "--tp is 0: give 1 or more"),
        ({"id": "prompt"}, "the id column cannot be prompt"),
        ({"max-model-len": 2}, "--max-model-len is too small"),
    ],
)
def test_flags_that_cannot_be(
    score: Callable[..., Result], tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    file = write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    result = score(file, **changes)
    assert result.code == 2
    assert any(problem in line for line in result.problems), result.err
    assert not (tmp_path / "out").exists()


def test_scores_are_not_put_among_the_requests(score: Callable[..., Result], tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    (problem,) = score(tmp_path).problems
    assert problem == f"--out {tmp_path}/out lies in {tmp_path}, and would be read as requests: give another"
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer(score: Callable[..., Result], model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    bare = Path(shutil.copytree(model, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    assert score(file, model=bare).problems == [f"{bare} has no tokenizer.json: put it there"]


def test_another_input_model_or_setting_is_refused_with_what_changed(
    score: Callable[..., Result],
    handed: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    data = tmp_path / "in"
    write(data / "a.parquet", id=[1, 2], prompt=["x", "y"])
    write(data / "b.parquet", id=[3, 2], prompt=["x", "y"])
    first = score(data)
    assert first.code == 0
    assert "engines take up to 512 tokens: how long rows are is not known before they are read" in first.err
    assert pq.read_table(tmp_path / "out" / "repeated_ids.parquet")["row"].to_pylist() == [1, 3]
    (call,) = handed
    assert call["spec"].aligned is None
    assert [(unit.first_row, unit.end_row) for unit in call["units"]] == [(0, 2), (2, 4)]
    recorded = json.loads((tmp_path / "out" / "score.json").read_text())
    assert recorded["lam"] is None
    assert list(recorded["pair"]) == ["model"]

    moved = tmp_path / "moved"
    data.rename(moved)
    again = score(moved, **{"max-model-len": 512})  # the same files lie elsewhere
    assert again.code == 0
    assert "engines take up to" not in again.err
    third = score(moved)
    assert "engines take up to 512 tokens" in third.err
    assert "--max-model-len asks for fewer" in first.err
    # The length of a begun batch may not change, so no hint asks for that.
    assert "--max-model-len asks for fewer" not in third.err

    before = contents(tmp_path / "out")
    write(moved / "b.parquet", id=[3, 4], prompt=["x", "z"])
    write(moved / "c.parquet", id=[5], prompt=["x"])
    other = write_checkpoint(tmp_path / "other", seed=1)
    result = score(moved, model=other, engine="block_size=64")
    assert result.code == 2
    told = [problem.replace(f"{tmp_path}/", "") for problem in result.problems]
    assert told[0] == "engine.block_size was 32 and is 64 now"
    assert told[1].startswith("pair.model.fingerprint was ")
    assert "moved/c.parquet is new among the files" in told
    assert any("in/a.parquet is not among the files now" in line for line in told)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("missing", ["lam", "rows", "files", "pair"])
def test_a_damaged_record_is_named(
    score: Callable[..., Result],
    lambdasweep: Callable[..., Result],
    handed: list[dict[str, Any]],
    tmp_path: Path,
    missing: str,
) -> None:
    file = write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    assert score(file).code == 0
    path = tmp_path / "out" / "score.json"
    record = json.loads(path.read_text())
    del record[missing]
    path.write_text(json.dumps(record))
    for result in (score(file), lambdasweep("status", tmp_path / "out")):
        assert result.code == 2
        assert f"{path} is damaged" in result.err


def test_a_run_directory_and_an_output_directory_are_not_taken_for_each_other(
    score: Callable[..., Result],
    lambdasweep: Callable[..., Result],
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "a.parquet", id=[1], prompt=["x"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "sweep.json").write_text("{}")
    assert "it holds sweep.json" in score(file, out=run).err
    assert score(file).code == 0
    status = lambdasweep("status", tmp_path / "out")
    assert status.code == 0
    *_, rows, units, driver = status.out.splitlines()
    assert (rows, units) == ("0 rows scored, 0 quarantined", "0 units done, 1 left")
    assert driver.startswith("driver was stopped ")
    watch = lambdasweep("status", tmp_path / "out", "--watch")
    assert (watch.code, "is a batch, and --watch shows sweeps" in watch.err) == (2, True)
