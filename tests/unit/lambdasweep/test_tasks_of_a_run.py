"""A run has tasks of lm-eval and tasks in chat templates as it has files of rows."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.rundir import RunDir
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.command_line import (
    IRON,
    WATER,
    Result,
    write_task,
)
from tests.support.lm_eval_inputs import cache_of_datasets

# Tasks of lm-eval


@pytest.fixture
def yaml_task(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a task of lm-eval over a local file."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")
    write_task(tmp_path / "rows.json", IRON | {"choices": ["iron", "water"]}, WATER | {"choices": ["sand", "water"]})
    settings = {
        "task": "wet_metals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
    }
    path = tmp_path / "wet.yaml"
    path.write_text(json.dumps(settings))
    with cache_of_datasets(tmp_path_factory.mktemp("datasets")):
        yield path


@pytest.mark.parametrize("name", ["", "mine"])
def test_a_task_of_lm_eval(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], yaml_task: Path, tmp_path: Path, name: str
) -> None:
    task = f"{name}=lm-eval:{yaml_task}".removeprefix("=")
    planned = lambdasweep("plan", *flags(task=task, limit=1))
    assert (planned.code, planned.err) == (0, "")
    assert f"task      {name or 'wet_metals'}: 1 document, 2 requests" in planned.out
    assert lambdasweep("run", *flags(task=task)).code == 0
    (entry,) = RunDir(tmp_path / "run").plan()["tasks"].values()
    assert (entry["file"], entry["format"]) == (f"lm-eval:{yaml_task}", "lm-eval")
    assert entry["template"] == "lm-eval 0.4.13 multiple_choice"
    assert lambdasweep("run", *flags(task=task)).code == 0
    status = lambdasweep("status", tmp_path / "run")
    assert f"{name or 'wet_metals'}: 0/3 units, 2 documents × 3 λ (lm-eval, 0 shots)" in status.out
    yaml_task.write_text(yaml_task.read_text().replace("{{query}}", "{{query}}?"))
    refused = lambdasweep("run", *flags(task=task))
    assert refused.code == 2
    assert any("sha256 was" in problem for problem in refused.problems)


def test_a_task_of_lm_eval_in_a_file(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], yaml_task: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.toml"
    config.write_text(
        '[[task]]\nfile = "lm-eval:wet.yaml"\nlimit = 1\n\n[[task]]\nname = "metals"\nfile = "metals.jsonl"\n'
    )
    planned = lambdasweep("plan", *flags(task=None, config=config))
    assert planned.code == 0, planned.err
    assert "task      wet_metals: 1 document," in planned.out
    assert "task      metals: 2 documents" in planned.out
    config.write_text('[[task]]\nfile = "lm-eval:wet.yaml"\nformat = "cloze"\n')
    (problem,) = lambdasweep("plan", *flags(task=None, config=config)).problems
    assert problem.endswith("[[task]] 1: a task of lm-eval has its own format: remove format")


def test_names_of_lm_eval_that_are_taken(refused: Callable[..., Result], yaml_task: Path, tmp_path: Path) -> None:
    (problem,) = refused(task=[f"lm-eval:{yaml_task}", f"wet_metals={tmp_path / 'metals.jsonl'}"]).problems
    assert problem == "tasks are named twice: wet_metals: give each its own name, as NAME=lm-eval:TASK"


# Chat templates

CHAT = "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"


@pytest.fixture
def chatty(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """Return the aligned checkpoint, with a chat template."""
    shutil.copytree(pair[1], tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(CHAT)
    return tmp_path / "chatty"


def test_a_pair_without_a_chat_template(refused: Callable[..., Result], pair: tuple[Path, Path], chatty: Path) -> None:
    (problem,) = refused(template="chat").problems
    assert problem == (
        f"{pair[1]} has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: "
        "put one there, or leave --template out"
    )
    assert refused(template="chat", base=chatty, aligned=pair[0]).problems == [problem.replace("aligned", "base", 1)]
    (problem,) = refused(template="yes").problems
    assert problem == "--template is 'yes': use none, chat, chat-turns"


def test_a_chat_template_is_part_of_the_task(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    pair: tuple[Path, Path],
    chatty: Path,
    tmp_path: Path,
) -> None:
    line = flags(aligned=chatty, template="chat")
    assert lambdasweep("run", *line).code == 0
    run = RunDir(tmp_path / "run")
    entry = run.plan()["tasks"]["metals"]
    assert entry["template"].startswith("cloze 1")
    assert entry["chat_template_sha256"] == hashlib.sha256(CHAT.encode()).hexdigest()
    tokens = run.requests("metals").read_bytes()
    text = load_tokenizer(pair[0]).decode(pq.read_table(pa.BufferReader(tokens))["token_ids"][1].as_py())
    assert text == "<s><user>Which is a metal?\nAnswer:<assistant>oxygen"
    assert lambdasweep("run", *line).code == 0
    for name, changed in (("template", CHAT + "\n"), ("comment", CHAT + "{# the same text #}")):
        (chatty / "chat_template.jinja").write_text(changed)
        result = lambdasweep("run", *line)
        assert result.code == 2, name
        assert any("task metals: chat_template_sha256 was" in problem for problem in result.problems)
    result = lambdasweep("run", *flags(aligned=chatty))
    assert result.code == 2
    assert any(problem.endswith("is null now") for problem in result.problems)
    assert run.plan()["tasks"]["metals"] == entry


def test_a_chat_template_for_one_task_of_a_file(
    lambdasweep: Callable[..., Result], flags: Callable[..., list[object]], chatty: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sweep.toml"
    rows = '[[task]]\nname = "{0}"\nfile = "metals.jsonl"\ntemplate = "{0}"\n'
    config.write_text(rows.format("none") + rows.format("chat"))
    assert lambdasweep("run", *flags(task=None, config=config, aligned=chatty)).code == 0
    tasks = RunDir(tmp_path / "run").plan()["tasks"]
    assert [tasks[name]["chat_template_sha256"] is None for name in ("none", "chat")] == [True, False]
    config.write_text(rows.format("some"))
    (problem,) = lambdasweep("plan", *flags(task=None, config=config)).problems
    assert problem == f"{config}: [[task]] 1 (some): template is 'some': use none, chat, chat-turns"
