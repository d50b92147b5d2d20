"""Task files become the requests table: bad inputs are refused, formats have their texts, and shards are cut."""

import hashlib
import io
import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import schemas
from contract.errors import InputError, PairError, TaskError
from contract.schemas import of_documents
from lambdasweep.demo import BASE
from lambdasweep.tasks import requests as requests_module
from lambdasweep.tasks.documents import Document, TaskSpec, read_documents
from lambdasweep.tasks.formats import draw_shots, render, shots_text
from lambdasweep.tasks.requests import BuiltTask, build_requests, content_sha256, shards
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

IRON = {"query": "Which is a metal?", "choices": ["iron", "oxygen"], "gold": 0}
PARIS = {"context": "The capital of France is", "continuation": "Paris"}


class Characters:
    """This tokenizer makes one token of each character, and none of "~"."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 0

    def __call__(self, text: list[str], **settings: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in one if character != "~"] for one in text]}

    def decode(self, token_ids: Any) -> str:
        return "".join(map(chr, token_ids))


@pytest.fixture
def spec(tmp_path: Path):
    """Write rows (objects, or lines as they are) and return the TaskSpec for them."""

    def write(*rows: Any, **settings: Any) -> TaskSpec:
        lines = [
            row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            for row in rows
        ]
        file = tmp_path / "task.jsonl"
        file.write_bytes(b"\n".join(lines))
        return TaskSpec(**{"name": "metals", "file": file, **settings})

    return write


def texts(built: BuiltTask) -> list[tuple[str, str]]:
    """Return (context, continuation) of each request of a task built with `Characters`."""
    rows = zip(built.table["token_ids"].to_pylist(), built.table["continuation_start"].to_pylist(), strict=True)
    return [("".join(map(chr, ids[:start])), "".join(map(chr, ids[start:]))) for ids, start in rows]


# What is refused


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b'{"query": }', "line 2: is not JSON (Expecting value at column 11): write one object a line"),
        (b"[" * 100_000, "line 2: cannot be read as JSON"),
        (b'{"gold": ' + b"1" * 5000 + b"}", "line 2: cannot be read as JSON"),
        (b'"caf\xe9"', "line 2: is not UTF-8"),
        (b"[1, 2]", "line 2: is of type list, not an object"),
        (b"null", "line 2: is of type null, not an object"),
        ({"query": "Which?", "gold": 0}, "line 2: has neither choices (with query and gold) nor a continuation"),
        ({**IRON, "continuation": "x"}, "line 2: has both choices and a continuation"),
        ({**IRON, "query": 3}, "line 2: query is of type number: give a string"),
        ({"choices": ["a", "b"], "gold": 0}, "line 2: query is missing: give a string"),
        ({**IRON, "choices": "ab"}, "line 2: choices is of type string: give a list of strings"),
        ({**IRON, "choices": ["a", None]}, "line 2: choice 1 is missing: give a string"),
        ({**IRON, "choices": ["a", {}]}, "line 2: choice 1 is of type object: give a string"),
        ({**IRON, "choices": []}, "line 2: has 0 choices: give at least 2"),
        ({**IRON, "choices": ["a"]}, "line 2: has 1 choices: give at least 2"),
        ({**IRON, "choices": ["a", ""]}, "line 2: choice 1 is empty"),
        ({**IRON, "choices": [" \n", "a"]}, "line 2: choice 0 is empty"),
        ({**IRON, "choices": ["a", " a"]}, "line 2: all choices are the same text"),
        ({**IRON, "choices": ["a", "\ud800"]}, "line 2: choice 1 holds half of a surrogate pair"),
        ({**IRON, "choices": [f"c{i}" for i in range(2**15)]}, "line 2: has 32768 choices: the cloze format takes at"),
        ({"query": "Which?", "choices": ["a", "b"]}, "line 2: gold is missing: give the index of the right choice"),
        ({**IRON, "gold": "C"}, "line 2: gold is 'C': give the index"),
        ({**IRON, "gold": 1.5}, "line 2: gold is 1.5: give the index"),
        ({**IRON, "gold": True}, "line 2: gold is True: give the index"),
        ({**IRON, "gold": 2}, "line 2: gold is 2: it counts from 0, so give 0 to 1"),
        ({**IRON, "gold": -1}, "line 2: gold is -1: it counts from 0, so give 0 to 1"),
        (PARIS, "rows with choices (line 1) and rows with a continuation (line 2) are mixed"),
    ],
)
def test_a_bad_row_is_named_by_its_line(spec, row: Any, problem: str) -> None:
    with pytest.raises(TaskError) as caught:
        read_documents(spec(IRON, row))
    (found,) = caught.value.problems
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"continuation": "x"}, "line 2: context is missing: give a string"),
        ({"context": ["x"], "continuation": "x"}, "line 2: context is of type list: give a string"),
        ({"context": "x", "continuation": None}, "line 2: continuation is missing: give a string"),
        ({"context": "x", "continuation": ""}, "line 2: continuation is empty"),
        ({"context": "x", "continuation": "  "}, "line 2: continuation is empty"),
        ({"context": "\ud800", "continuation": "x"}, "line 2: context holds half of a surrogate pair"),
    ],
)
def test_a_bad_continuation_row_is_named_by_its_line(spec, row: Any, problem: str) -> None:
    with pytest.raises(TaskError) as caught:
        read_documents(spec(PARIS, row))
    (found,) = caught.value.problems
    assert found.startswith(problem)


def test_letters_need_choices_and_at_most_26(spec) -> None:
    alphabet = {**IRON, "choices": [f"c{i}" for i in range(26)]}
    read_documents(spec(alphabet, format="letters"))
    with pytest.raises(TaskError, match="line 1: has 27 choices: the letters format takes at most 26"):
        read_documents(spec({**IRON, "choices": [f"c{i}" for i in range(27)]}, format="letters"))
    with pytest.raises(TaskError, match="line 1: the letters format needs choices"):
        read_documents(spec(PARIS, format="letters"))


def test_all_problems_come_at_once_in_file_order(spec) -> None:
    with pytest.raises(TaskError) as caught:
        read_documents(spec("{", "", {**IRON, "gold": 9, "choices": ["a", ""]}, b"\xff", name="a/b", limit=0))
    assert str(caught.value).startswith("task 'a/b' cannot be built from ")
    heads = [problem.split(":")[0] for problem in caught.value.problems]
    assert heads[2:] == ["line 1", "line 3", "line 3", "line 4"]
    assert heads[0].startswith("the task name 'a/b' cannot be a file name")
    assert heads[1] == "limit is 0"


def test_what_is_wrong_with_many_rows_is_said_once(spec) -> None:
    with pytest.raises(TaskError) as caught:
        read_documents(spec(*[{"query": "?"}, {**IRON, "gold": 9}] * 4, {"query": "?"}, {"query": "?"}))
    assert caught.value.problems == (
        "lines 1, 3, 5, 7, 9 and 1 more: has neither choices (with query and gold) nor a continuation (with context)",
        "lines 2, 4, 6, 8: gold is 9: it counts from 0, so give 0 to 1",
    )


def test_twenty_problems_are_shown(spec) -> None:
    with pytest.raises(TaskError) as caught:
        read_documents(spec(*[{**IRON, "gold": 100 + row} for row in range(23)]))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 3 more"
    with pytest.raises(TaskError) as caught:
        read_documents(spec(*[{**IRON, "gold": 100 + row} for row in range(20)]))
    assert len(caught.value.problems) == 20
    assert "more" not in caught.value.problems[-1]


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "-x", "a/b", "é", "a\n", "a" * 129])
def test_a_name_that_is_no_file_name_is_refused(spec, name: str) -> None:
    with pytest.raises(TaskError, match="cannot be a file name"):
        read_documents(spec(IRON, name=name))


def test_settings_are_checked(spec) -> None:
    read_documents(spec(IRON, IRON, name="arc_easy-v1.2", shots=1, limit=1))
    with pytest.raises(TaskError, match="2 shots from 2 rows leave none to evaluate"):
        read_documents(spec(IRON, IRON, shots=2))
    with pytest.raises(TaskError, match="shots is -1: give 0 or more"):
        read_documents(spec(IRON, shots=-1))
    with pytest.raises(TaskError, match="limit is 0: give 1 or more"):
        read_documents(spec(IRON, limit=0))
    with pytest.raises(TaskError, match="format is 'essay': use cloze, letters"):
        read_documents(spec(IRON, format="essay"))


def test_a_file_that_cannot_be_read(spec, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot be read \(No such file or directory\)"):
        read_documents(TaskSpec("a", tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"the directory holds no file \*\.jsonl: give a file"):
        read_documents(TaskSpec("a", tmp_path))
    for empty in ("", "\n \n\r\n"):
        with pytest.raises(TaskError) as caught:
            read_documents(spec(empty))
        assert caught.value.problems == ("the file is empty: give one JSON object a line",)


# What is read


def test_lines_are_counted_as_editors_count_them(spec) -> None:
    separator = json.dumps({**IRON, "query": "one\u2028line"}, ensure_ascii=False)
    rows = [b"\xef\xbb\xbf" + json.dumps(IRON).encode() + b"\r", "", separator, "  ", IRON, ""]
    assert [document.line for document in read_documents(spec(*rows)).documents] == [1, 3, 5]
    # JSON takes this for white space.
    assert len(read_documents(spec(json.dumps(IRON).replace(", ", ",\r"))).documents) == 1


def test_other_keys_are_ignored(spec) -> None:
    file = read_documents(spec({**IRON, "context": 7, "extra": None}))
    assert file.documents == (Document(1, "1", "Which is a metal?", ("iron", "oxygen"), 0),)
    assert file.kind == "choices"


@pytest.mark.parametrize(
    ("ids", "expected", "warns"),
    [
        (["b", "a"], ["b", "a"], False),
        ([7, "a"], ["7", "a"], False),
        (["a", None], ["1", "2"], False),
        (["a", 1.5], ["1", "2"], False),
        ([True, False], ["1", "2"], False),
        (["a", "\ud800"], ["1", "2"], False),
        (["5", 5], ["1", "2"], True),
    ],
)
def test_documents_are_known_by_id_or_line(spec, ids: list[Any], expected: list[str], warns: bool) -> None:
    file = read_documents(spec(*({**IRON, "id": name} for name in ids)))
    assert [document.doc_id for document in file.documents] == expected
    assert bool(file.warnings) is warns


def test_a_repeated_choice_is_kept_once(spec) -> None:
    rows = [
        {**IRON, "choices": ["iron", "tin ", " tin", "iron"], "gold": 2},
        IRON,
        {**IRON, "choices": ["iron", "tin", "iron"], "gold": 2},
    ]
    built = build_requests(spec(*rows), Characters())
    assert built.duplicates == 2
    assert built.warnings == ("task metals: documents with a repeated choice, which is scored once: 2 (lines 1, 3)",)
    assert built.table["choice"].to_pylist() == [0, 1, 0, 1, 0, 1]
    assert built.table["is_gold"].to_pylist() == [False, True, True, False, True, False]
    assert texts(build_requests(spec(*rows, format="letters"), Characters()))[0] == (
        "Which is a metal?\nA. iron\nB. tin\nAnswer:",
        " A",
    )


def test_each_continuation_is_scored_once_without_a_document(spec) -> None:
    rows = [IRON, {**IRON, "choices": ["tin", "iron", "oxygen"]}, {**IRON, "query": "And?"}]
    plain, built = build_requests(spec(*rows), Characters()), build_requests(spec(*rows, pmi=True), Characters())
    own = of_documents(built.table)
    assert own.equals(plain.table)
    alone = built.table.slice(len(own))
    assert texts(replace(built, table=alone)) == [("Answer:", " iron"), ("Answer:", " oxygen"), ("Answer:", " tin")]
    assert built.table["request_id"].to_pylist() == list(range(len(own) + 3))
    assert alone["continuation_bytes"].to_pylist() == [4, 6, 3]
    assert len(set(alone["doc_id"].to_pylist())) == 3  # or the engine would compare each with all others
    assert (built.documents, built.duplicates, built.warnings) == (3, 0, ())
    assert built.template == plain.template + "; without the document: 'Answer:'"
    assert built.requests_sha256 != plain.requests_sha256


def test_the_same_tokens_are_scored_without_a_document(spec) -> None:
    """A choice that begins in the context's last token keeps the tokens that it has there."""
    pytest.importorskip("transformers", reason="a real tokenizer needs transformers")
    tokenizer = load_tokenizer(BASE)
    built = build_requests(spec(IRON, shots=0, pmi=True, format="letters"), tokenizer)
    own = of_documents(built.table)
    ids, starts = built.table["token_ids"].to_pylist(), built.table["continuation_start"].to_pylist()
    cut = [tuple(one[start:]) for one, start in zip(ids, starts, strict=True)]
    assert cut[len(own) :] == list(dict.fromkeys(cut[: len(own)]))
    before = {tuple(one[:start]) for one, start in zip(ids[len(own) :], starts[len(own) :], strict=True)}
    assert before == {tuple(tokenizer(["Answer:"])["input_ids"][0])}


def test_shards_of_documents_are_the_same_beside_an_unconditional_pass(spec) -> None:
    rows = [{**IRON, "query": f"{chr(64 + number)}: which is a metal?"} for number in range(40)]
    plain, built = build_requests(spec(*rows), Characters()), build_requests(spec(*rows, pmi=True), Characters())
    of_plain, of_both = shards(plain.table, 300), shards(built.table, 300)
    assert len(of_plain) > 2
    assert of_both[: len(of_plain)] == of_plain
    assert of_both[len(of_plain) :] == [(80, 82)]
    many = build_requests(spec(*({**IRON, "choices": [f"{n:04}", "x"]} for n in range(400)), pmi=True), Characters())
    cut = shards(many.table, 30)
    assert [row for run in cut for row in run][1:-1:2] == [row for run in cut for row in run][2::2]  # none is left out
    assert cut[-1][1] == len(many.table) == 800 + 401
    assert sum(first >= 800 for first, _ in cut) > 1


def test_choices_that_differ_are_kept(spec) -> None:
    built = build_requests(spec({**IRON, "choices": ["iron", "Iron", "i ron"]}), Characters())
    assert (built.duplicates, built.warnings, len(built.table)) == (0, (), 3)


# The text of each format


def test_cloze(spec) -> None:
    built = build_requests(spec({"query": " Which?\n ", "choices": [" é", "oxygen "], "gold": 1}), Characters())
    assert texts(built) == [(" Which?\nAnswer:", " é"), (" Which?\nAnswer:", " oxygen")]
    assert built.table["continuation_bytes"].to_pylist() == [2, 6]
    assert built.template.startswith("cloze 1:")
    assert not built.one_token


def test_a_query_may_be_empty(spec) -> None:
    assert texts(build_requests(spec({**IRON, "query": ""}), Characters()))[0] == ("\nAnswer:", " iron")


def test_letters(spec) -> None:
    built = build_requests(
        spec({"query": "Which? ", "choices": [" é", "oxygen "], "gold": 1}, format="letters"), Characters()
    )
    context = "Which?\nA. é\nB. oxygen\nAnswer:"
    assert texts(built) == [(context, " A"), (context, " B")]
    assert built.table["continuation_bytes"].to_pylist() == [1, 1]
    assert built.template.startswith("letters 1:")


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("is", "Paris", ("is", " Paris")),
        ("is ", "Paris", ("is ", "Paris")),
        ("is\n", "Paris", ("is\n", "Paris")),
        ("is", "\nParis", ("is", "\nParis")),
        ("is", " Paris ", ("is", " Paris ")),
        ("", "Paris", ("", "Paris")),
    ],
)
def test_a_continuation_is_set_off_by_one_space(context: str, continuation: str, expected: tuple[str, str]) -> None:
    prompt = render(Document(1, "1", context, (continuation,), 0), "continuation", "cloze")
    assert (prompt.context, *prompt.continuations) == expected
    assert prompt.sizes == (len(continuation.lstrip()),)


def test_continuation_rows(spec) -> None:
    built = build_requests(spec(PARIS), Characters())
    assert texts(built) == [("The capital of France is", " Paris")]
    assert built.table["is_gold"].to_pylist() == [True]
    assert built.table["continuation_bytes"].to_pylist() == [5]
    assert built.template.startswith("continuation 1:")


# Shots


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"query": f"Q{i}?", "choices": [f"a{i}", f"b{i}"], "gold": i % 2, "id": f"row{i}"} for i in range(count)]


def test_shots_stand_in_front_and_are_not_evaluated(spec) -> None:
    built = build_requests(spec(*rows_of(6), shots=2, seed=5), Characters())
    first, second = random.Random(5).sample(range(6), 2)
    assert first > second  # shots are shown in the order in which they were drawn
    answers = ["a", "b"]
    front = "".join(f"Q{i}?\nAnswer: {answers[i % 2]}{i}\n\n" for i in (first, second))
    rest = [i for i in range(6) if i not in (first, second)]
    assert texts(built) == [(f"{front}Q{i}?\nAnswer:", f" {answer}{i}") for i in rest for answer in answers]
    assert built.table["doc_id"].to_pylist() == [f"row{i}" for i in rest for _ in answers]
    assert built.documents == 4


def test_shots_of_letters_and_continuations(spec) -> None:
    (document,) = read_documents(spec({**IRON, "gold": 1})).documents
    assert shots_text([document], "choices", "letters") == "Which is a metal?\nA. iron\nB. oxygen\nAnswer: B\n\n"
    (document,) = read_documents(spec(PARIS)).documents
    assert shots_text([document] * 2, "continuation", "cloze") == "The capital of France is Paris\n\n" * 2
    assert shots_text([], "continuation", "cloze") == ""


def test_shots_depend_on_the_seed_alone(spec) -> None:
    documents = read_documents(spec(*rows_of(30))).documents
    shots, rest = draw_shots(documents, 5, None, 0)
    assert draw_shots(documents, 5, None, 0) == (shots, rest)
    assert draw_shots(documents, 5, 2, 0) == (shots, rest[:2])
    assert draw_shots(documents, 5, None, 1)[0] != shots
    assert len(rest) == 25
    assert not set(shots) & set(rest)
    assert rest == sorted(rest, key=lambda document: document.line)


def test_limit_takes_the_first_documents(spec) -> None:
    built = build_requests(spec(*rows_of(5), limit=2), Characters())
    assert built.table["doc_id"].to_pylist() == ["row0", "row0", "row1", "row1"]
    assert build_requests(spec(*rows_of(5), limit=9), Characters()).documents == 5


def test_a_repeated_choice_counts_where_it_is_used(spec) -> None:
    rows = [*rows_of(3), {**IRON, "choices": ["a", "b", "a"], "id": "row3"}]
    assert build_requests(spec(*rows, limit=2), Characters()).duplicates == 0
    seed = next(seed for seed in range(99) if random.Random(seed).sample(range(4), 1) == [3])
    assert build_requests(spec(*rows, shots=1, limit=2, seed=seed), Characters()).duplicates == 1


# Tokens


def make_tokenizer(
    directory: Path, template: str | None = None, bos: bool = True, eos: bool = True, words: bool = True
) -> Path:
    """Save a byte-level tokenizer that knows a few pairs as one token; `words` keeps tokens within words."""
    pytest.importorskip("transformers", reason="a real tokenizer needs transformers")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "y"), ("Ġ", "z"), ("o", "b"), ("Ċ", "Ċ"), ("o", "Ġ"), ("oĠ", "b")]
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    backend.enable_truncation(8)  # published files have this setting, which must not cut anything here
    names = {name: token for name, token, wanted in (("bos_token", "<s>", bos), ("eos_token", "</s>", eos)) if wanted}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(directory)
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("bos"), "<s> $A"))


def encoded(built: BuiltTask, tokenizer: Any) -> list[tuple[list[str], list[str]]]:
    rows = zip(built.table["token_ids"].to_pylist(), built.table["continuation_start"].to_pylist(), strict=True)
    names = [(tokenizer.convert_ids_to_tokens(ids), start) for ids, start in rows]
    return [(tokens[:start], tokens[start:]) for tokens, start in names]


# lm-evaluation-harness 0.4.13 expects these tokens (TemplateLM.loglikelihood over the hf backend's tok_encode).
@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("x", "y", (["x"], ["Ġy"])),
        ("x ", "y", (["x"], ["Ġy"])),  # the space of the context is scored with the continuation
        ("x \n", "y", (["x"], ["Ġ", "Ċ", "y"])),
        ("x", "\n\n\ny", (["x"], ["ĊĊ", "Ċ", "y"])),
        ("oo\n", "\n\ny", (["o", "o"], ["ĊĊ", "Ċ", "y"])),
        ("", "oby", (["<s>"], ["ob", "y"])),
        ("", "<s>y", (["<s>"], ["y"])),
        (" ", "y", (["<s>"], ["Ġy"])),
        ("<s>x", "y", (["<s>", "x"], ["Ġy"])),
        ("x" * 20, "y", (["x"] * 20, ["Ġy"])),
    ],
)
def test_the_boundary_of_context_and_continuation(
    spec, plain: Any, with_bos: Any, context: str, continuation: str, expected: tuple[list[str], list[str]]
) -> None:
    task = spec({"context": context, "continuation": continuation})
    built = build_requests(task, plain)
    assert encoded(built, plain) == [expected]
    assert built.warnings == ()
    front = [] if expected[0][0] == "<s>" else ["<s>"]  # BOS is never there twice
    assert encoded(build_requests(task, with_bos), with_bos) == [([*front, *expected[0]], expected[1])]


def test_a_token_across_the_boundary_is_cut_and_reported(spec, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tokenizer(tmp_path / "across", words=False))
    rows = [{"context": context, "continuation": text} for context, text in [("oo", "x"), ("o", "b"), ("x", "y")]]
    built = build_requests(spec(*rows), tokenizer)
    assert encoded(built, tokenizer) == [(["o", "o"], ["x"]), (["o"], []), (["x"], ["Ġy"])]
    assert built.warnings == (
        "task metals: requests without a token to score, to be quarantined: 1 (line 2)",
        "task metals: requests with a token across context and continuation, cut as lm-eval cuts it: 2 (lines 1, 2)",
    )


def test_a_continuation_without_tokens_keeps_its_row(spec) -> None:
    rows = [{"context": "ab", "continuation": "\t~"}, PARIS, {"context": "", "continuation": "~"}]
    built = build_requests(spec(*rows), Characters())
    assert len(built.table) == 3
    assert [len(text) for _, text in texts(built)] == [1, 6, 0]
    assert built.table["token_ids"].to_pylist()[2] == [0]
    assert built.warnings == ("task metals: requests without a token to score, to be quarantined: 1 (line 3)",)


def test_an_empty_context_needs_a_token_to_stand_for_it(spec, tmp_path: Path) -> None:
    rows = [PARIS, {"context": "", "continuation": "y"}, {"context": "\n", "continuation": "y"}]
    eos_only = load_tokenizer(make_tokenizer(tmp_path / "eos", bos=False))
    assert build_requests(spec(*rows), eos_only).table["token_ids"].to_pylist()[1][0] == eos_only.eos_token_id
    neither = load_tokenizer(make_tokenizer(tmp_path / "neither", bos=False, eos=False))
    with pytest.raises(TaskError, match="lines 2, 3: empty context, and the tokenizer has neither BOS nor EOS"):
        build_requests(spec(*rows), neither)
    build_requests(spec(PARIS), neither)


def test_special_tokens_of_an_empty_context_are_left_out(spec, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tokenizer(tmp_path / "two", "</s> <s> $A"))
    built = build_requests(spec({"context": "", "continuation": "y"}, {"context": "x", "continuation": "y"}), tokenizer)
    assert encoded(built, tokenizer) == [(["<s>"], ["y"]), (["</s>", "<s>", "x"], ["Ġy"])]


def test_one_token(spec, plain: Any) -> None:
    row = {"query": "Q", "choices": ["y", "z"], "gold": 0}
    assert build_requests(spec(row), plain).one_token
    assert not build_requests(spec(row, {**row, "choices": ["y", "x"]}), plain).one_token  # " x" is two tokens


def test_a_checkpoint_without_a_usable_tokenizer(tmp_path: Path) -> None:
    ends = make_tokenizer(tmp_path / "ends", "<s> $A </s>")
    with pytest.raises(PairError, match="ends texts with special tokens: set add_eos_token to false"):
        load_tokenizer(ends)
    with pytest.raises(PairError, match="is not a directory"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "empty")
    (ends / "tokenizer.json").write_text("{")
    with pytest.raises(PairError, match="cannot be loaded"):
        load_tokenizer(ends)


def test_a_slow_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="a real tokenizer needs transformers")
    slow = type("Slow", (), {"is_fast": False})()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    with pytest.raises(PairError, match="has a slow tokenizer: save it with a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_laptop_without_transformers_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"install lambdasweep\[cpu\]"):
        load_tokenizer(tmp_path)


# The table


def test_the_table(spec) -> None:
    built = build_requests(spec(*rows_of(3)), Characters())
    assert built.table.schema.equals(schemas.REQUESTS)
    built.table.validate(full=True)
    assert built.table["request_id"].to_pylist() == list(range(6))
    assert built.table["is_gold"].to_pylist() == [True, False, False, True, True, False]
    assert built.table["choice"].to_pylist() == [0, 1] * 3


def test_batches_do_not_show(spec, plain: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    task = spec(*rows_of(11), {**IRON, "choices": ["y", "ob", "x", "y y"], "id": "row11"}, shots=2)
    whole = build_requests(task, plain)
    monkeypatch.setattr(requests_module, "_BATCH", 3)
    assert build_requests(task, plain) == whole


def test_hashes(spec) -> None:
    task = spec(IRON)
    built = build_requests(task, Characters())
    assert built.sha256 == hashlib.sha256(task.file.read_bytes()).hexdigest()
    assert built.requests_sha256 == content_sha256(built.table)
    # The hash is pinned, because a change of it makes every earlier run directory look changed.
    assert built.requests_sha256 == "24f0b41adf45f9475619ca448aa536b2e5caa3f99e2e66a808d9c3a0a335f5b2"


def test_the_content_hash_ignores_how_the_rows_are_kept(spec) -> None:
    table = build_requests(spec(*rows_of(4)), Characters()).table
    expected = content_sha256(table)
    file = io.BytesIO()
    pq.write_table(table, file)
    assert content_sha256(pq.read_table(file)) == expected
    assert content_sha256(pa.concat_tables([table.slice(0, 3), table.slice(3)])) == expected
    assert content_sha256(pa.concat_tables([table, table]).slice(len(table))) == expected
    assert content_sha256(table.slice(2, 3)) == content_sha256(
        pa.Table.from_pylist(table.to_pylist()[2:5], table.schema)
    )
    assert content_sha256(table.replace_schema_metadata({"made": "today"})) == expected
    large = table.cast(
        pa.schema(
            [field.with_type(pa.large_string()) if field.type == pa.string() else field for field in table.schema]
        )
    )
    assert content_sha256(large) == expected


def test_the_content_hash_sees_every_value(spec) -> None:
    table = build_requests(spec(*rows_of(4)), Characters()).table
    rows = table.to_pylist()
    found = {content_sha256(table), content_sha256(table.slice(1)), content_sha256(table.slice(0, 7))}
    other = {
        "request_id": 99,
        "doc_id": "x",
        "choice": 5,
        "token_ids": [*rows[2]["token_ids"][:-1], 7],
        "continuation_start": 1,
        "continuation_bytes": 50,
        "is_gold": not rows[2]["is_gold"],
    }
    for name, value in other.items():
        found.add(content_sha256(pa.Table.from_pylist([*rows[:2], {**rows[2], name: value}, *rows[3:]], table.schema)))
    # These are the same values with another boundary between rows.
    longer, shorter = rows[2]["token_ids"] + rows[3]["token_ids"][:1], rows[3]["token_ids"][1:]
    moved = [*rows[:2], {**rows[2], "token_ids": longer}, {**rows[3], "token_ids": shorter}, *rows[4:]]
    found.add(content_sha256(pa.Table.from_pylist(moved, table.schema)))
    moved = [{**row, "doc_id": name} for row, name in zip(rows, ["ab", "c", *"defghi"], strict=True)]
    found.add(content_sha256(pa.Table.from_pylist(moved, table.schema)))
    moved = [{**row, "doc_id": name} for row, name in zip(rows, ["a", "bc", *"defghi"], strict=True)]
    found.add(content_sha256(pa.Table.from_pylist(moved, table.schema)))
    assert len(found) == 3 + len(other) + 3


# Shards


def make_table(common: int, documents: list[tuple[int, list[int]]]) -> pa.Table:
    """Return a table of documents (context tokens after the common ones, continuation tokens of each choice)."""
    rows = []
    for number, (context, continuations) in enumerate(documents):
        for choice, length in enumerate(continuations):
            # A context's first own token differs between documents, so that the common prefix is what it says.
            head = [7] * common + [100 + number] * context
            rows.append((f"d{number}", choice, head + [5] * length, len(head)))
    columns = zip(*rows, strict=True) if rows else [[]] * 4
    doc_ids, choices, token_ids, starts = map(list, columns)
    return pa.table(
        [list(range(len(rows))), doc_ids, choices, token_ids, starts, [1] * len(rows), [False] * len(rows)],
        schema=schemas.REQUESTS,
    )


def cost(table: pa.Table, begin: int, end: int, common: int) -> int:
    """Count the tokens computed for rows [begin, end) in the plain way."""
    contexts, total = {}, common
    for row in table.slice(begin, end - begin).to_pylist():
        contexts[row["doc_id"]] = row["continuation_start"] - common
        total += len(row["token_ids"]) - row["continuation_start"]
    return total + sum(contexts.values())


tables = st.tuples(
    st.integers(0, 20),
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 9), min_size=1, max_size=5)), min_size=2, max_size=60
    ),
    st.integers(-5, 1500),
)


@given(tables)
def test_shards_are_whole_documents_in_order(drawn: tuple[int, list[tuple[int, list[int]]], int]) -> None:
    common, documents, target = drawn
    table = make_table(common, documents)
    found = shards(table, target)
    assert found[0][0] == 0
    assert found[-1][1] == len(table)
    assert all(begin < end for begin, end in found)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(found))
    doc_ids = table["doc_id"].to_pylist()
    assert all(doc_ids[end - 1] != doc_ids[end] for _, end in found[:-1])
    assert shards(pa.concat_tables([table.slice(0, 1), table.slice(1)]), target) == found


@given(tables)
def test_shards_close_when_they_are_full(drawn: tuple[int, list[tuple[int, list[int]]], int]) -> None:
    common, documents, target = drawn
    table = make_table(common, documents)
    doc_ids = table["doc_id"].to_pylist()
    found = shards(table, target)
    full = max(target, 50 * common)
    for begin, end in found[:-1]:
        assert cost(table, begin, end, common) >= full
        last = doc_ids.index(doc_ids[end - 1])
        assert last == begin or cost(table, begin, last, common) < full
    if len(found) > 1:  # the prefix is at most 2 % of every shard
        assert all(50 * common <= cost(table, begin, end, common) for begin, end in found)
    else:
        # Some document closes the shard, and what follows it is too little for another one.
        count = len(doc_ids)
        begins = [row for row in range(count) if row == 0 or doc_ids[row] != doc_ids[row - 1]]
        assert any(
            (begin == 0 or cost(table, 0, begin, common) < full)
            and (end == count or cost(table, end, count, common) < 50 * common)
            for begin, end in itertools.pairwise([*begins, count])
        )


def test_shards_by_hand() -> None:
    table = make_table(0, [(6, [2, 2])] * 5)  # 10 tokens a document
    assert shards(table, 20) == [(0, 4), (4, 8), (8, 10)]
    assert shards(table, 21) == [(0, 6), (6, 10)]
    assert shards(table, 1) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert shards(table, 1000) == [(0, 10)]
    assert shards(make_table(0, []), 20) == []
    # A prefix of 2 raises 20 to 100: 2 + 10 n tokens, and the last two documents are too few for a shard of their own.
    table = make_table(2, [(6, [2, 2])] * 22)
    assert shards(table, 20) == [(0, 20), (20, 44)]
    assert shards(make_table(2, [(6, [2, 2])] * 20), 20) == [(0, 20), (20, 40)]
    # The prefix counts towards the 100: 2 + 14 · 7.
    assert shards(make_table(2, [(5, [1, 1])] * 28), 20) == [(0, 28), (28, 56)]
    assert shards(make_table(2, [(0, [1])] * 196), 20) == [(0, 98), (98, 196)]


def test_a_document_longer_than_a_shard() -> None:
    assert shards(make_table(0, [(500, [1]), (1, [1]), (1, [1])]), 4) == [(0, 1), (1, 3)]


def test_documents_with_the_same_context() -> None:
    table = make_table(3, [(0, [1]), (0, [1]), (0, [1])])
    assert shards(table, 1) == [(0, 3)]


def test_tasks_import_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "tokenizers", "ray", "vllm"}
    code = f"import sys, lambdasweep.tasks; print(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_a_directory_or_a_glob_is_its_files_one_after_the_other(tmp_path: Path) -> None:
    rows = [{"query": f"Q{n}", "choices": ["a", "b"], "gold": 0} for n in range(4)]
    for name, row in zip(("b/two", "a/one", "_tmp/three", ".four"), rows, strict=True):
        path = tmp_path / "rows" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file lacks a line's end, and has a byte order mark.
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    for asked in ("rows", "rows/*/*.jsonl"):
        read = read_documents(TaskSpec("t", tmp_path / asked))
        assert [(one.query, one.doc_id) for one in read.documents] == [("Q1", "1"), ("Q0", "2")]
    with pytest.raises(TaskError, match="no file matches it: give a file"):
        read_documents(TaskSpec("t", tmp_path / "none-*.jsonl"))
