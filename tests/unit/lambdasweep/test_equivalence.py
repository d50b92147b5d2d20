"""Answers that mean the same, by a model of natural language inference or of sentence embeddings: its judgements, and what
becomes of classes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from contract import schemas
from contract.errors import TaskError
from lambdasweep.tasks.answers import RowGrader, answers_of
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.embedding import is_of_embeddings
from lambdasweep.tasks.equivalence import Inference, TwoAnswers, read_equivalence, same_meaning
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
    labels = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    return tiny(tmp_path_factory.mktemp("nli"), LlamaForSequenceClassification, **labels)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("embedding"), LlamaModel)


def tiny(root: Path, kind: Any, **more: Any) -> Path:
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=2,
        **more,
    )
    found = kind(config)
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
            logits = reference(**tokenizer(f"at {premise}", f"at {hypothesis}", return_tensors="pt")).logits[0]
        expected.append(LABELS[int(logits.argmax())] == "ENTAILMENT")
    assert equivalence.judge()("at", pairs) == expected
    assert 5 < sum(expected) < 75
    assert equivalence.judge()("at", []) == []


def test_a_cosine_is_that_of_transformers_text_by_text(embedding: Path) -> None:
    """Whatever is embedded together: what fills a batch up is in no mean, and neither is the question."""
    texts = [" ".join(WORDS[n % 7 : n % 7 + 1 + n % 9]) for n in range(40)]
    pairs = [(texts[n], texts[(7 * n + 3) % 40]) for n in range(40)]
    tokenizer = AutoTokenizer.from_pretrained(embedding)
    reference = AutoModel.from_pretrained(embedding, dtype=torch.float32).eval()
    with torch.no_grad():
        means = {
            text: reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)
            for text in texts
        }
    cosines = [float(torch.cosine_similarity(means[one], means[two], dim=0)) for one, two in pairs]
    middle = sorted(cosines)
    threshold = round((middle[19] + middle[20]) / 2, 4)
    assert min(abs(one - threshold) for one in cosines) > 1e-5
    equivalence, problems = read_equivalence(f"{embedding}@{threshold}")
    assert equivalence is not None
    assert not problems
    judge = equivalence.judge()
    assert judge("what is wet?", pairs) == [one >= threshold for one in cosines]
    assert [judge("", [pair])[0] for pair in pairs] == [one >= threshold for one in cosines]
    assert judge("", []) == []


def test_a_threshold_is_recorded_with_the_model(embedding: Path) -> None:
    plain, some, more = (read_equivalence(f"{embedding}{at}")[0] for at in ("", "@0.9", "@0.95"))
    assert plain is not None
    assert some is not None
    assert more is not None
    assert plain.recorded == some.recorded == more.recorded.replace("@0.95", "@0.9")
    assert some.recorded.endswith("@0.9")


@pytest.mark.parametrize(
    ("modules", "pooling", "at", "says"),
    [
        (
            ["Transformer", "Pooling", "Normalize"],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
            "",
            "",
        ),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, "@0.99", ""),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True},
            "",
            "the mean over an answer's tokens (cls_token)",
        ),
        (["Transformer", "Pooling"], {"pooling_mode": "lasttoken"}, "", "the mean over an answer's tokens (lasttoken)"),
        (["Transformer", "Pooling"], {}, "", "the mean over an answer's tokens (no pooling mode)"),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, "", "(Dense)"),
        ([], {}, "@1", "answers mean the same from a cosine between 0 and 1 on: give DIRECTORY@0.9"),
        ([], {}, "@high", "answers mean the same from a cosine between 0 and 1 on: give DIRECTORY@0.9"),
    ],
)
def test_models_that_embed_otherwise_are_refused(
    modules: list[str], pooling: object, at: str, says: str, embedding: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedding, tmp_path / "model")
    if modules:
        listed = [
            {"path": f"{number}_{kind}" if number else "", "type": f"x.models.{kind}"}
            for number, kind in enumerate(modules)
        ]
        (tmp_path / "model" / "modules.json").write_text(json.dumps(listed))
        (tmp_path / "model" / "1_Pooling").mkdir()
        (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    found, problems = read_equivalence(f"{tmp_path / 'model'}{at}")
    if says:
        assert found is None
        assert says in problems[0]
    else:
        assert found is not None


@pytest.mark.parametrize("config", [{"is_encoder_decoder": True, "model_type": "t5"}, {"text_config": {}}])
def test_models_of_more_than_a_text_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SomeModel"]} | config))
    found, (problem,) = read_equivalence(str(tmp_path))
    assert found is None
    assert f"a {config.get('model_type', 'model')}, which is no single text model: give a model" in problem


def test_a_bound_and_lower_case_of_sentence_transformers(embedding: Path, tmp_path: Path) -> None:
    """They stand beside the weights, which lie in a folder of their own in older models; a longer text means nothing."""
    folder = tmp_path / "0_Transformer"
    shutil.copytree(embedding, folder)
    listed = [{"path": folder.name, "type": "x.models.Transformer"}, {"path": "1_Pooling", "type": "x.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    asked = [("the sea", "THE SEA"), ("the sea", "the sea and all of it at last"), ("the sea " * 9, "the sea " * 9)]

    def judged(most: int | None, lower: bool) -> tuple[list[bool], str]:
        own = {"max_seq_length": most, "do_lower_case": lower}
        (folder / "sentence_bert_config.json").write_text(json.dumps(own))
        found, problems = read_equivalence(f"{tmp_path}@0.0001")
        assert found is not None
        assert not problems
        return found.judge()("", asked), found.recorded

    plain, recorded = judged(None, False)
    assert plain[2]
    lower, other = judged(None, True)
    assert lower[0]
    assert recorded != other
    ids = AutoTokenizer.from_pretrained(folder)("the sea")["input_ids"]
    assert judged(len(ids), True)[0] == [True, False, False]
    assert judged(len(ids) - 1, True)[0] == [False, False, False]


def test_texts_that_a_model_cannot_take_in_entail_nothing(model: Path) -> None:
    equivalence, _ = read_equivalence(str(model))
    assert equivalence is not None
    judge = equivalence.judge()
    long = " ".join(WORDS * 20)  # of more tokens than the model has positions
    pairs = [(" ".join(WORDS[n % 7 : n % 7 + 1 + n % 5]), " ".join(WORDS[n % 11 : n % 11 + 2])) for n in range(40)]
    mixed = [pair for one in pairs for pair in (one, (long, one[0]))]
    assert judge("at", mixed)[::2] == judge("at", pairs)
    assert not any(judge("at", mixed)[1::2])
    assert judge("at", [(long, long)]) == [False]


@pytest.mark.parametrize(
    ("architecture", "is_one"),
    [("BertModel", True), ("Qwen3Model", True), ("GPT2LMHeadModel", False), ("LlamaForCausalLM", False)],
)
def test_a_model_with_a_head_is_none_of_embeddings(architecture: str, is_one: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert is_of_embeddings(tmp_path) == is_one


def entailing(one: str, two: str) -> "Sequence[TwoAnswers]":
    return [(one, two), (two, one)]


def test_answers_mean_the_same_where_each_entails_the_other() -> None:
    """An answer is held against the first one of each class, in order; the normaliser's own classes are not asked about."""
    known = {*entailing("Rome", "the city of Rome"), *entailing("Rome", "Roma"), ("Paris", "Rome")}
    known |= {*entailing("Roma", "Paris")}  # Roma is in the class of Rome by then, whose first answer is not Paris
    asked: list[TwoAnswers] = []

    def entails(question: str, pairs: Sequence[TwoAnswers]) -> list[bool]:
        assert question == "Q"
        asked.extend(pairs)
        return [pair in known for pair in pairs]

    answers = ["Rome", "Paris", "", "Roma", "ROME", "the city of Rome", ""]
    classes = ["rome", "paris", "", "roma", "rome", "city of rome", ""]
    found = same_meaning("Q", answers, classes, entails)
    assert found == ["rome", "paris", "", "rome", "rome", "rome", ""]
    assert not any("ROME" in text or not text for pair in asked for text in pair)
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

    def entails(question: str, pairs: Sequence[TwoAnswers]) -> list[bool]:
        return ["else" in question and "tin" not in one + two for one, two in pairs]

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
        assert isinstance(found, Inference)
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
    assert before.equivalence == built.equivalence.recorded if built.equivalence else None
    assert grader.question(0) == "Q: a?"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    after, *_ = answers_of(read_documents(spec), load_tokenizer(tmp_path / "tokenizer"), ())
    assert before.equivalence != after.equivalence
    (model / "config.json").write_text(json.dumps(config))
