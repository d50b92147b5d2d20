"""Answers that mean the same, by a model of natural language inference: its judgements and what becomes of classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from contract import schemas
from contract.errors import TaskError
from lambdasweep.tasks.answers import RowGrader, answers_of
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.equivalence import Pair, read_equivalence, same_meaning
from lambdasweep.tasks.grading import graded_table
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.checkpoints import write_tokenizer

LABELS = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
WORDS = [
    "the",
    "sea",
    "sand",
    "tin",
    "his",
    "hers",
    "and",
    "all",
    "of",
    "it",
    "or",
    "none",
    "there",
    "at",
    "last",
    "read",
    "in",
    "time",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of three labels with random weights, which entails now and then."""
    root = tmp_path_factory.mktemp("nli")
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=2,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
    )
    found = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    found.save_pretrained(root)
    write_tokenizer(root)
    return root


def test_a_judgement_is_that_of_transformers_pair_by_pair(model: Path) -> None:
    """Whatever is judged together."""
    equivalence, problems = read_equivalence(str(model))
    assert equivalence is not None
    assert not problems
    pairs = [(" ".join(WORDS[n % 7 : n % 7 + 1 + n % 5]), " ".join(WORDS[n % 11 : n % 11 + 2])) for n in range(80)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    expected = []
    for premise, hypothesis in pairs:
        with torch.no_grad():
            logits = reference(**tokenizer(premise, hypothesis, return_tensors="pt")).logits[0]
        expected.append(LABELS[int(logits.argmax())] == "ENTAILMENT")
    assert equivalence.judge()(pairs) == expected
    assert 5 < sum(expected) < 75
    assert equivalence.judge()([]) == []


def entailing(*two: str) -> "Sequence[Pair]":
    return [(f"Q {two[0]}", f"Q {two[1]}"), (f"Q {two[1]}", f"Q {two[0]}")]


def test_answers_mean_the_same_where_each_entails_the_other() -> None:
    """An answer is held against the first one of each class, in order; the normaliser's own classes are not asked about."""
    known = {*entailing("Rome", "the city of Rome"), *entailing("Rome", "Roma"), ("Q Paris", "Q Rome")}
    known |= {*entailing("Roma", "Paris")}  # Roma is in the class of Rome by then, whose first answer is not Paris
    asked: list[Pair] = []

    def entails(pairs: Sequence[Pair]) -> list[bool]:
        asked.extend(pairs)
        return [pair in known for pair in pairs]

    answers = ["Rome", "Paris", "", "Roma", "ROME", "the city of Rome", ""]
    classes = ["rome", "paris", "", "roma", "rome", "city of rome", ""]
    found = same_meaning("Q", answers, classes, entails)
    assert found == ["rome", "paris", "", "rome", "rome", "rome", ""]
    assert not any("ROME" in text or text == "Q " for pair in asked for text in pair)
    assert len(asked) == len(set(asked)) == 2 + 4 + 4


def test_classes_of_graded_outputs(model: Path, tmp_path: Path) -> None:
    """What is right does not change, and answers of other documents are never held against each other."""
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    texts = ["sea", "the sea water", "tin", "sea", "the sea water", "tin"]
    ids = tokenizer(texts)["input_ids"]
    columns = {
        "request_id": [0, 0, 0, 1, 1, 1],
        "sample": [0, 1, 2] * 2,
        **schemas.place_columns("0", 6),
        "seed": [7] * 6,
        "token_ids": ids,
        "text": texts,
        "finish_reason": ["stop"] * 6,
        **{name: [[-0.5] * len(one) for one in ids] for name in ("logprobs", "top1_logprobs", "entropies")},
        **{name: [[1] * len(one) for one in ids] for name in ("ranks", "top1_ids")},
    }
    generations = pa.table(columns, schema=schemas.GENERATIONS)
    grader = RowGrader((("sea",), ("sea",)), "squad", questions=("what is wet?", "what else?"))

    def entails(pairs: Sequence[Pair]) -> list[bool]:
        assert all(one.split("?")[0] == two.split("?")[0] for one, two in pairs)
        return ["else" in one and "tin" not in one + two for one, two in pairs]

    found = graded_table(generations, "0", grader, tokenizer, entails=entails)
    assert found["answer_class"].to_pylist() == ["sea", "sea water", "tin", "sea", "sea", "tin"]
    plain = graded_table(generations, "0", grader, tokenizer)
    assert found.drop_columns(["answer_class"]).equals(plain.drop_columns(["answer_class"]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "whose config.json has no labels (FileNotFoundError"),
        ({}, "whose config.json has no labels (KeyError('id2label'))"),
        ({"id2label": {"0": "good", "1": "bad"}}, "and its labels are good, bad: give the directory of a model that"),
        ({"id2label": {"0": "not_entailment", "1": "entailment"}}, ""),
    ],
)
def test_models_without_entailment_are_refused(config: object, says: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    found, problems = read_equivalence(str(tmp_path))
    if not says:
        assert found is not None
        assert found.entailment == 1
        return
    assert found is None
    assert says in problems[0]
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    spec = TaskSpec("quiz", tmp_path / "rows.jsonl", format="generate", equivalence=str(tmp_path))
    with pytest.raises(TaskError) as refused:
        answers_of(read_documents(spec), load_tokenizer(tmp_path / "tokenizer"), ())
    assert list(refused.value.problems) == problems


def test_what_is_recorded_is_the_hash_of_the_model(model: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Q: a?", "answers": ["sand"]}))
    spec = TaskSpec("quiz", tmp_path / "rows.jsonl", format="generate", equivalence=str(model))
    before, built, grader = answers_of(read_documents(spec), load_tokenizer(tmp_path / "tokenizer"), ())
    assert before.equivalence == built.equivalence.sha256 if built.equivalence else None
    assert grader.question(0) == "Q: a?"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    after, *_ = answers_of(read_documents(spec), load_tokenizer(tmp_path / "tokenizer"), ())
    assert before.equivalence != after.equivalence
    (model / "config.json").write_text(json.dumps(config))
