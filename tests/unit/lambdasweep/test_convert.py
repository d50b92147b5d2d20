"""Rows of data sets become task files by the names that ARC, MMLU, PIQA and WinoGrande use; others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.errors import InputError, TaskError
from lambdasweep.tasks.convert import ColumnMap, convert, index_of
from lambdasweep.tasks.documents import TaskSpec, read_documents
from tests.support.command_line import IRON, Result, write_task

ARC = [
    {
        "id": "Mercury_1",
        "question": "Which?",
        "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    },
    {
        "id": "NYS_2",
        "question": "What?",
        "choices": {"text": ["d", "e", "f"], "label": ["1", "2", "3"]},
        "answerKey": "1",
    },
]
MMLU = [
    {"question": "Which?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 3},
    {"question": "What?", "subject": "x", "choices": ["e", "f", "g", "h"], "answer": 0},
]
PIQA = [
    {"goal": "Open it", "sol1": "pull", "sol2": "push", "label": 1},
    {"goal": "Shut it", "sol1": "turn", "sol2": "slam", "label": 0},
]
WINOGRANDE = [
    {"sentence": "_ won", "option1": "Ann", "option2": "Bob", "answer": "2"},
    {"sentence": "_ lost", "option1": "Ann", "option2": "Bob", "answer": "1"},
]


@pytest.mark.parametrize(
    ("rows", "right"), [(ARC, ["c", "d"]), (MMLU, ["d", "e"]), (PIQA, ["push", "turn"]), (WINOGRANDE, ["Bob", "Ann"])]
)
def test_data_sets_that_are_known(rows: list[dict[str, Any]], right: list[str]) -> None:
    made = list(convert(rows))
    assert [row["choices"][row["gold"]] for row in made] == right
    assert [row.get("id") for row in made] == [row.get("id") for row in rows]
    assert all(type(row["gold"]) is int and isinstance(row["query"], str) for row in made)


def test_columns_that_are_named() -> None:
    rows = [{"text": "Which?", "w": "a", "x": "b", "key": "b"}, {"text": "What?", "w": "c", "x": "d", "key": "c"}]
    made = list(convert(rows, ColumnMap.parse("query=text,choices=w+x,gold=key")))
    assert [(row["query"], row["choices"], row["gold"]) for row in made] == [
        ("Which?", ["a", "b"], 1),
        ("What?", ["c", "d"], 0),
    ]
    with pytest.raises(
        InputError, match="the columns text, w, x, key are not known: say which is which with --columns"
    ):
        list(convert(rows))
    with pytest.raises(InputError, match=r"--columns 'query=text' is not query=COLUMN,choices=COLUMN,gold=COLUMN"):
        ColumnMap.parse("query=text")


def test_what_cannot_be_converted_is_named_at_once() -> None:
    rows = [
        MMLU[0] | {"answer": 4},
        MMLU[0] | {"answer": "Z"},
        MMLU[0] | {"question": None},
        *[MMLU[0] | {"choices": "ab"}] * 5,
    ]
    with pytest.raises(InputError) as refused:
        list(convert(rows))
    assert refused.value.problems == (
        "row 1: the right choice is 4, and there are 4",
        "row 2: the right choice is 'Z', which is no index, no letter and no text of one",
        "row 3: it has no question",
        "row 4, 5, 6 and 2 more: choices is str, and no list of choices",
    )


@pytest.mark.parametrize(
    ("value", "index"),
    [
        *((1, 1), (1.0, 1), ("B", 1), ("oxygen", 1), (" iron ", 0)),
        *((other, None) for other in (1.5, True, None, float("nan"), "C", "1", "b", "")),
    ],
)
def test_what_a_right_choice_means(value: Any, index: int | None) -> None:
    assert index_of(value, ["iron", "oxygen"]) == index


def test_a_letter_that_is_also_a_choice_is_doubtful() -> None:
    assert index_of("A", ["B", "A"]) is None
    assert index_of("B", ["A", "B"]) == 1  # it means the same either way


@pytest.mark.parametrize("gold", ["B", 1.0, "oxygen"])
def test_a_task_file_takes_what_is_not_doubtful(tmp_path: Path, gold: object) -> None:
    file = write_task(tmp_path / "rows.jsonl", IRON | {"gold": gold})
    assert read_documents(TaskSpec("t", file)).documents[0].gold == 1


def test_a_data_set_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(MMLU), folder / "test-00000.parquet")
    pq.write_table(pa.Table.from_pylist(MMLU * 3), folder / "train-00000.parquet")
    task = read_documents(TaskSpec("mmlu", Path(f"hf:{folder}")))
    assert [(one.query, one.choices[one.gold]) for one in task.documents] == [("Which?", "d"), ("What?", "e")]
    assert len(read_documents(TaskSpec("mmlu", Path(f"hf:{folder}:train"))).documents) == 6
    assert task.spec.source == f"hf:{folder}"
    with pytest.raises(TaskError, match="has no split dev: give one of "):
        read_documents(TaskSpec("mmlu", Path(f"hf:{folder}::dev")))
    with pytest.raises(TaskError, match=r"hf:.*gone cannot be loaded \("):
        read_documents(TaskSpec("mmlu", Path(f"hf:{tmp_path}/gone")))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_is_converted(lambdasweep: Callable[..., Result], tmp_path: Path, name: str) -> None:
    source, out = tmp_path / name, tmp_path / "task.jsonl"
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(ARC), source)
    else:
        write_task(source, *ARC)
    result = lambdasweep("tasks", "convert", source, "--out", out)
    assert (result.code, result.out, result.err) == (0, f"2 rows in {out}\n", "")
    assert [one.gold for one in read_documents(TaskSpec("arc", out)).documents] == [2, 0]
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["Mercury_1", "NYS_2"]
    again = lambdasweep("tasks", "convert", source, "--out", out)
    assert (again.code, again.err) == (2, f"lambdasweep: {out} exists: give another --out, or remove it\n")


def test_lines_that_cannot_be_converted_are_named(lambdasweep: Callable[..., Result], tmp_path: Path) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "task.jsonl"
    twice = '{"query": "x", "choices": ["a", "b"], "gold": 0, "gold": 1}'
    write_task(source, IRON | {"query": "one\u2028line"}, "[1]", twice, "", twice, "{")
    result = lambdasweep("tasks", "convert", source, "--out", out)
    assert (result.code, result.err.splitlines()[0]) == (2, f"lambdasweep: {source} cannot be converted")
    assert result.problems == [
        "line 2: is of type list, not an object: write {…}",
        "lines 3, 5: cannot be read as JSON (the key 'gold' stands twice in one object: keep one of them)",
        "line 6: is not JSON (Expecting property name enclosed in double quotes at column 2): write one object a line",
    ]
    source.write_text(json.dumps(IRON | {"query": "one\u2028line"}, ensure_ascii=False), encoding="utf-8")
    assert lambdasweep("tasks", "convert", source, "--out", out).code == 0


def test_a_format_of_one_task(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], tmp_path: Path
) -> None:
    file = tmp_path / "metals.jsonl"
    odd = write_task(tmp_path / "odd:letters", IRON)  # there is a file of that very name
    plan = lambdasweep("plan", *flags(task=[f"a={file}", f"b={file}:letters", f"c={odd}"]))
    assert plan.code == 0, plan.err
    lines = [line for line in plan.out.splitlines() if line.startswith("task ")]
    assert ["letters" in line for line in lines] == [False, True, False]
