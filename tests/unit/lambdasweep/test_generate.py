"""`--generate` refuses bad prompts, and its sweep is recorded and planned. No engine is started."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from contract import schemas
from contract.errors import TaskError
from contract.records import TaskRecord
from contract.rundir import RunDir
from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.prompts import (
    GenerateSpec,
    build_prompts,
    prompt_costs,
    prompt_shards,
    read_prompts,
    stop_tokens,
)
from lambdasweep.tasks.tokens import load_tokenizer
from ray_jobs.work import GenerateSource
from serve.sampling import seed_of
from serve.settings import Sampling
from tests.support.checkpoints import write_checkpoint
from tests.support.command_line import Result, contents, write_task

PROMPTS = [{"prompt": "Once upon a time", "id": "once"}, {"prompt": "", "id": "nothing"}, {"prompt": "2 + 2 ="}]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_task(tmp_path / "prompts.jsonl", *PROMPTS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 0}, "samples is 0: give 1 to 32767"),
        ({"temperature": -1}, "temperature is -1: give 0, or 0.01 or more"),
        ({"temperature": 0.001}, "temperature is 0.001: give 0, or 0.01 or more"),
        ({"temperature": "nan"}, "temperature is nan: give 0, or 0.01 or more"),
        ({"max_tokens": 0}, "--max-tokens is 0: give 1 or more"),
        ({"generate": "prompts.jsonl"}, "--generate 'prompts.jsonl' is not NAME=PROMPTS.jsonl"),
        ({"generate": "metals=prompts.jsonl"}, "task 'metals' is named twice: give each its own name"),
        ({"generate": "stories=nowhere.jsonl"}, "the file cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_flag(
    refused: Callable[..., Result],
    prompts: Path,
    changes: dict[str, object],
    says: str,
) -> None:
    (problem,) = refused(**({"generate": f"stories={prompts}"} | changes)).problems
    assert says in problem


def test_everything_is_named_at_once(refused: Callable[..., Result], tmp_path: Path) -> None:
    file = write_task(tmp_path / "bad.jsonl", {"prompt": 3}, "{", ["x"], {"text": "no prompt"}, {"prompt": "\ud800"})
    task = write_task(tmp_path / "task.jsonl", {"query": "?"})
    found = refused(generate=f"stories={file}", samples=0, task=f"quiz={task}").problems
    assert found[0] == "--samples is 0: give 1 to 32767"
    assert [problem.partition(": ")[2] for problem in found[1:]] == [
        "line 1: has neither choices (with query and gold) nor a continuation (with context)",
        "line 1: prompt is of type number: give a string",
        "line 2: is not JSON (Expecting property name enclosed in double quotes at column 2): write one object a line",
        "line 3: is of type list, not an object: write {…}",
        "line 4: prompt is missing: give a string",
        "line 5: prompt holds half of a surrogate pair (such as \\ud800), which is not text",
    ]


def test_samples_alone_are_a_sweep(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    handed: list[dict[str, Any]],
    pair: tuple[Path, Path],
    prompts: Path,
    tmp_path: Path,
) -> None:
    asked = flags(task=None, generate=f"stories={prompts}", samples=4, max_tokens=8)
    planned = lambdasweep("plan", *asked)
    assert planned.code == 0
    (line,) = [line for line in planned.out.splitlines() if line.startswith("generate")]
    tokens = 3 * 4 * 8 + sum(len(load_tokenizer(pair[0])(row["prompt"])["input_ids"]) for row in PROMPTS)
    how = "4 samples of at most 8 tokens, temperature 1"
    assert line == f"generate  stories: 3 prompts, {tokens} tokens at most in 1 shard ({how})"
    assert "units     3 to do of 3 (3 λ)" in planned.out
    result = lambdasweep("run", *asked)
    assert result.code == 0, result.err
    run = RunDir(tmp_path / "run")
    assert [unit.key for unit in handed[-1]["units"]] == [("stories", lam, 0) for lam in ("0", "0.5", "1")]
    table = pq.read_table(run.requests("stories"))
    assert table.replace_schema_metadata(None).schema.equals(schemas.PROMPTS)
    assert table["doc_id"].to_pylist() == ["1", "2", "3"]  # not every row has an id
    assert table["prompt"].to_pylist() == [row["prompt"] for row in PROMPTS]
    status = lambdasweep("status", run.root).out
    assert "stories: 0/3 units, 3 documents × 3 λ (4 samples of at most 8 tokens, temperature 1)" in status
    # A committed table is what counts a unit as done.
    before = contents(run.root)
    path = run.unit("generations", "stories", "0.5", 0)
    path.parent.mkdir(parents=True)
    pq.write_table(schemas.GENERATIONS.empty_table(), path)
    assert "units     2 to do of 3 (3 λ)" in lambdasweep("plan", *asked).out
    assert "stories: 1/3 units" in lambdasweep("status", run.root).out
    assert before.items() <= contents(run.root).items()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 5}, "task stories: samples was 4 and is 5 now"),
        ({"temperature": 0.5}, "task stories: temperature was 1.0 and is 0.5 now"),
        ({"max_tokens": 9}, "task stories: max_tokens was 8 and is 9 now"),
        ({"limit": 2}, "task stories: limit was null and is 2 now"),
        ({"row": {"prompt": "another"}}, "task stories: sha256 was "),
        ({"eos": [1, 7]}, "task stories: stop_token_ids was [1] and is [1, 7] now"),
    ],
)
def test_what_is_sampled_cannot_change(
    lambdasweep: Callable[..., Result],
    refused: Callable[..., Result],
    flags: Callable[..., list[object]],
    prompts: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    says: str,
) -> None:
    base = write_checkpoint(tmp_path / "base", seed=0)
    asked = {"base": base, "generate": f"stories={prompts}", "samples": 4, "max_tokens": 8}
    assert lambdasweep("run", *flags(**asked)).code == 0
    if row := changes.pop("row", None):
        write_task(prompts, *PROMPTS[:2], row)
    if eos := changes.pop("eos", None):
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    found = refused(**asked | changes).problems
    assert any(problem.startswith(says) for problem in found), found


def test_tables_of_a_config(
    lambdasweep: Callable[..., Result],
    pair: tuple[Path, Path],
    prompts: Path,
    tmp_path: Path,
) -> None:
    text = f"base = '{pair[0]}'\naligned = '{pair[1]}'\nlambdas = '0,1'\nout = 'run'\nsamples = 3\n"
    table = "[[generate]]\nname = '{}'\nfile = 'prompts.jsonl'\n{}\n"
    config = tmp_path / "sweep.toml"
    config.write_text(text + table.format("a", "temperature = 0.7\nlimit = 2") + table.format("b", "samples = 5"))
    assert lambdasweep("run", "--config", config, "--max-tokens", 9).code == 0
    plan = RunDir(tmp_path / "run").plan()["tasks"]
    keys = ("samples", "temperature", "max_tokens", "limit", "documents")
    assert [plan["a"][key] for key in keys] == [3, 0.7, 9, 2, 2]
    assert [plan["b"][key] for key in keys] == [5, 1.0, 9, None, 3]
    config.write_text(text + table.format("a", "shots = 1\ntemperature = 'hot'") + "[[generate]]\nname = 'b'\n")
    assert lambdasweep("plan", "--config", config).problems == [
        f"{config}: [[generate]] 1 (a): unknown key 'shots': use "
        "name, file, samples, temperature, max_tokens, limit, template, system_prompt",
        f"{config}: [[generate]] 1 (a): temperature is 'hot': give a number",
        f"{config}: [[generate]] 2 (b): it needs file",
    ]


def test_prompts_are_cut_into_shards_by_what_they_cost(pair: tuple[Path, Path], prompts: Path) -> None:
    tokenizer = load_tokenizer(pair[0])
    spec = GenerateSpec("stories", prompts, samples=2, max_tokens=10)
    table = build_prompts(spec, tokenizer, ()).table
    assert table["token_ids"].to_pylist() == [tokenizer(row["prompt"])["input_ids"] for row in PROMPTS]
    lengths = [len(ids) for ids in table["token_ids"].to_pylist()]
    assert lengths[1] == 0  # the prompt keeps its row, and is quarantined
    assert prompt_costs(spec.samples, spec.max_tokens, table) == [length + 20 for length in lengths]
    # 128 samples of each of two prompts are enough outputs for an engine.
    assert prompt_shards([5, 5, 5, 20, 1], 128, 10) == [(0, 2), (2, 4), (4, 5)]
    assert prompt_shards([5], 128, 10) == [(0, 1)]
    assert prompt_shards([], 128, 10) == []
    # A few outputs are written with others, unless they are very long.
    assert prompt_shards([5] * 600, 1, 10)[0] == (0, 16)
    assert prompt_shards([5] * 600, 1, 500) == [(0, 256), (256, 512), (512, 600)]
    assert prompt_shards([5] * 600, 2, 500) == [(0, 128), (128, 256), (256, 384), (384, 512), (512, 600)]


def test_where_answers_end(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", seed=0)
    tokenizer = load_tokenizer(model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 1, 9]}))
    assert stop_tokens(model, tokenizer) == (1, 9)
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    assert stop_tokens(model, tokenizer) == (5,)
    nested = {"eos_token_id": None, "text_config": {"eos_token_id": [7, 3]}}
    (model / "config.json").write_text(json.dumps(config | nested))
    assert stop_tokens(model, tokenizer) == (3, 7)
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert stop_tokens(model, tokenizer) == (tokenizer.eos_token_id,)


def test_seeds_are_of_the_prompt_and_the_sample() -> None:
    seeds = {seed_of(prompt, ids, sample) for prompt in (0, 1) for ids in ([1, 2], [2]) for sample in range(16)}
    assert len(seeds) == 64
    assert len({seed % 2**32 for seed in seeds}) == 64  # the CPU uses these bits of a seed
    assert all(0 <= seed < 2**63 for seed in seeds)
    digest = hashlib.sha256(struct.pack("<4q", 0, 3, 1, 2)).digest()
    assert seed_of(0, [1, 2], 3) == struct.unpack("<Q", digest[:8])[0] // 2


def test_texts_are_without_special_tokens(pair: tuple[Path, Path], prompts: Path) -> None:
    from contract.units import Unit

    tokenizer = load_tokenizer(pair[0])
    table = build_prompts(GenerateSpec("stories", prompts), tokenizer, (1,)).table
    source = GenerateSource("/run", "stories", table, "hash", Sampling(2, 1.0, 4, (1,)), tokenizer)
    unit = Unit("stories", "0.5", 0, 0, 3, 1, offenders=((1, "it kills"),))
    work = source.open(unit)
    assert work.prompts["request_id"].to_pylist() == [0, 2]
    assert work.refused.to_pylist() == [{"request_id": 1, "reason": "it kills"}]
    # Tables name an end of thinking only where there is one.
    plain = {"samples", "temperature", "max_tokens", "stop_token_ids", "top_p", "top_k", "until"}
    assert work.identity["sampling"].keys() == plain
    thinking = replace(source, sampling=replace(source.sampling, think_end_token="</think>"))
    assert thinking.open(unit).identity["sampling"] == work.identity["sampling"] | {"think_end_token": "</think>"}
    ids = tokenizer("the end , of")["input_ids"]
    assert work._text([0, *ids, 2]) == "the end , of"
    assert list(source.documents(unit)) == [0, 1, 2]
    assert source.path(source.kind, unit) == RunDir("/run").unit("generations", *unit.key)


def chatty(root: Path) -> Path:
    """Return a checkpoint whose chat template names each message's role."""
    aligned = write_checkpoint(root / "aligned", seed=1)
    (aligned / "chat_template.jinja").write_text(
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %} [assistant]"
    )
    return aligned


def test_a_system_prompt_is_that_of_tasks_and_of_samples(
    lambdasweep: Callable[..., Result],
    refused: Callable[..., Result],
    flags: Callable[..., list[object]],
    prompts: Path,
    tmp_path: Path,
) -> None:
    aligned = chatty(tmp_path)
    asked = {"aligned": aligned, "generate": f"stories={prompts}", "template": "chat"}
    result = lambdasweep("run", *flags(**asked, system_prompt="Be brief."))
    assert result.code == 0, result.err
    run = RunDir(tmp_path / "run")
    tokenizer = load_tokenizer(aligned)
    texts = [f"[system] Be brief.[user] {row['prompt']} [assistant]" for row in PROMPTS]
    table = pq.read_table(run.requests("stories"))
    assert table["token_ids"].to_pylist() == [tokenizer(text)["input_ids"] for text in texts]
    assert {task["system_prompt"] for task in run.plan()["tasks"].values()} == {"Be brief."}
    assert len(run.plan()["tasks"]) == 2
    other = refused(**asked, system_prompt="Be long.")
    assert 'task stories: system_prompt was "Be brief." and is "Be long." now' in other.problems
    with pytest.raises(TaskError, match="no chat template that it would go into"):
        read_prompts(GenerateSpec("stories", prompts, system_prompt="Be brief."))
    skips = ChatTemplate("{{ messages[-1].content }}", tokenizer)
    with pytest.raises(TaskError, match="takes no system message: leave --system-prompt out"):
        build_prompts(
            GenerateSpec("stories", prompts, template="chat", system_prompt="Be brief."), tokenizer, (), skips
        )
    # The plans of samples without one are those of before there were any.
    assert "system_prompt" not in TaskRecord(scored_as="samples").to_json()


def test_prompts_go_through_the_chat_template(
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    prompts: Path,
    tmp_path: Path,
) -> None:
    aligned = chatty(tmp_path)
    (aligned / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    asked = {"aligned": aligned, "task": None, "generate": f"stories={prompts}", "template": "chat"}
    result = lambdasweep("run", *flags(**asked))
    assert result.code == 0, result.err
    assert (
        "warning: task stories: samples end at base's end tokens [1], and the aligned model ends its turns with "
        in (result.err)
    )
    run = RunDir(tmp_path / "run")
    tokenizer = load_tokenizer(aligned)
    table = pq.read_table(run.requests("stories"))
    texts = [f"[user] {row['prompt']} [assistant]" for row in PROMPTS]
    assert table["token_ids"].to_pylist() == [tokenizer(text)["input_ids"] for text in texts]
    other = flags(**asked, tokenizer="aligned", out=tmp_path / "other")
    assert "warning" not in lambdasweep("run", *other).err
    assert RunDir(tmp_path / "other").plan()["tasks"]["stories"]["stop_token_ids"] == [1, 7]
