"""Log-likelihoods and accuracies are those of lm-eval's own `hf` model: same texts, same checkpoint, same dtype."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract import schemas
from lambdasweep.demo import BASE, CLOZE, LETTERS
from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.requests import build_requests, requests_table
from lambdasweep.tasks.tokens import encode_windows, load_tokenizer
from tests.support import engine_process

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")

DOCUMENTS = 40
Scores = list[tuple[float, bool]]  # the log-likelihood of each request, and whether it is greedy


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:DOCUMENTS]]


def cloze_context(row: dict[str, Any]) -> str:
    return f"{row['query']}\nAnswer:"


def letters_context(row: dict[str, Any]) -> str:
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"{row['query']}{listed}\nAnswer:"


# The texts are written out here, so that a format that renders other texts than README says fails, too.
CLOZE_TEXTS = [(cloze_context(row), f" {choice}") for row in rows_of(CLOZE) for choice in row["choices"]]
LETTERS_TEXTS = [(letters_context(row), f" {letter}") for row in rows_of(LETTERS) for letter in "ABCD"]
CONTINUATION_TEXTS = [(cloze_context(row), f" {row['choices'][row['gold']]}") for row in rows_of(CLOZE)]
ROLLING_TEXTS = [f"{row['query']} {row['choices'][row['gold']]}" for row in rows_of(LETTERS)]
TEXTS = {"cloze": CLOZE_TEXTS, "letters": LETTERS_TEXTS, "continuation": CONTINUATION_TEXTS}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    """Return the scores of all tasks, as one unit of a real engine."""
    root = tmp_path_factory.mktemp("parity")
    tokenizer = load_tokenizer(BASE)
    rows = [{"context": context, "continuation": text.strip()} for context, text in CONTINUATION_TEXTS]
    continuation = root / "continuation.jsonl"
    continuation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    specs = {
        "cloze": TaskSpec("cloze", CLOZE, limit=DOCUMENTS),
        "letters": TaskSpec("letters", LETTERS, format="letters", limit=DOCUMENTS),
        "continuation": TaskSpec("continuation", continuation),
    }
    parts = {name: build_requests(spec, tokenizer).table for name, spec in specs.items()}
    windows, counts = encode_windows(tokenizer, ROLLING_TEXTS, 256)
    assert counts == [1] * DOCUMENTS  # lm-eval's own models differ where a text takes several windows
    ids = [str(number) for number in range(DOCUMENTS)]
    parts["rolling"] = requests_table(pa.array(ids), [0] * DOCUMENTS, [windows], [1] * DOCUMENTS, [True] * DOCUMENTS)
    every = [row | {"doc_id": f"{name}-{row['doc_id']}"} for name, part in parts.items() for row in part.to_pylist()]
    every = [row | {"request_id": number} for number, row in enumerate(every)]
    pq.write_table(pa.Table.from_pylist(every, schema=schemas.REQUESTS), root / "requests.parquet")
    job = {
        "base": BASE,
        "aligned": BASE,
        "settings": engine_process.settings().to_json(),
        "parents": "auto",
        "requests": root / "requests.parquet",
        "steps": [["0", root / "tokens.parquet"]],
    }
    (((table,), (counted,)),) = engine_process.run(root, {"ours": job}).values()
    assert counted["quarantine"] == []
    tokens = table.to_pylist()
    scores = iter([(sum(row["logprobs"]), all(rank == 1 for rank in row["ranks"])) for row in tokens])
    return {name: list(itertools.islice(scores, part.num_rows)) for name, part in parts.items()}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Scores]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(BASE), dtype="float32", device="cpu", batch_size=16)

    def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
        return [Instance(kind, {}, argument, number) for number, argument in enumerate(arguments)]

    found: dict[str, Scores] = {
        name: model.loglikelihood(instances("loglikelihood", list(texts)), disable_tqdm=True)
        for name, texts in TEXTS.items()
    }
    rolling = instances("loglikelihood_rolling", [(text,) for text in ROLLING_TEXTS])
    found["rolling"] = [(score, False) for score in model.loglikelihood_rolling(rolling, disable_tqdm=True)]
    return found


@pytest.mark.parametrize("task", [*TEXTS, "rolling"])
def test_every_log_likelihood_is_that_of_lm_eval(ours: dict[str, Scores], theirs: dict[str, Scores], task: str) -> None:
    mine, other = ours[task], theirs[task]
    assert len(mine) == len(other) == len(TEXTS.get(task, ROLLING_TEXTS))
    assert [score for score, _ in mine] == pytest.approx([score for score, _ in other], rel=1e-4, abs=0)
    if task != "rolling":
        assert [greedy for _, greedy in mine] == [bool(greedy) for _, greedy in other]


@pytest.mark.parametrize(("task", "file"), [("cloze", CLOZE), ("letters", LETTERS)])
def test_accuracies_are_those_of_lm_eval(
    ours: dict[str, Scores], theirs: dict[str, Scores], task: str, file: Path
) -> None:
    golds = [row["gold"] for row in rows_of(file)]
    texts = [text.removeprefix(" ") for _, text in TEXTS[task]]
    found = []
    for scores in (ours[task], theirs[task]):
        raw = [score for score, _ in scores]
        normalised = [score / len(text) for score, text in zip(raw, texts, strict=True)]
        found.append([accuracy(raw, golds), accuracy(normalised, golds)])
    assert found[0] == found[1]
    assert found[0][0] > 0.3  # an accuracy well above chance shows that the golds are the right ones


def accuracy(scores: list[float], golds: list[int]) -> float:
    documents = [scores[first : first + 4] for first in range(0, len(scores), 4)]
    return sum(one.index(max(one)) == gold for one, gold in zip(documents, golds, strict=True)) / len(golds)
