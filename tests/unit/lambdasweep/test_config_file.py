"""A sweep can be described in a TOML file, which has the rules of the flags."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import InputError
from contract.points import parse_points
from contract.rundir import RunDir
from lambdasweep.config import load_config
from tests.support.command_line import (
    IRON,
    WATER,
    Result,
    contents,
    write_task,
)


@pytest.fixture
def project(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    """Return a directory with a sweep.toml whose relative paths start there."""
    project = tmp_path / "project"
    project.mkdir()
    for role, parent in zip(("base", "aligned"), pair, strict=True):
        (project / role).symlink_to(parent)
    write_task(project / "metals.jsonl", IRON, WATER)
    (project / "sweep.toml").write_text(
        'base = "base"\naligned = "aligned"\nlambdas = "0,1"\nout = "runs/one"\nmax_model_len = 200\nformat = "letters"\n'
        "[engine]\nblock_size = 64\nseed = 3\n"
        '[[task]]\nname = "metals"\nfile = "metals.jsonl"\n'
        '[[task]]\nname = "shown"\nfile = "metals.jsonl"\nformat = "cloze"\nshots = 1\nseed = 5\n'
    )
    return project


def test_relative_paths_of_a_config_start_at_its_directory(
    lambdasweep: Callable[..., Result], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = lambdasweep("run", "--config", "../project/sweep.toml")
    assert (result.code, result.err.count("lambdasweep: ")) == (0, 0)
    run = RunDir(project / "runs" / "one")
    engine, tasks = run.sweep()["engine"], run.plan()["tasks"]
    assert (engine["max_model_len"], engine["block_size"], engine["extra"]) == (200, 64, {"seed": 3})
    assert {name: (task["format"], task["shots"], task["seed"], task["lambdas"]) for name, task in tasks.items()} == {
        "metals": ("letters", 0, 0, ["0", "1"]),
        "shown": ("cloze", 1, 5, ["0", "1"]),
    }
    assert contents(elsewhere) == {}


def test_flags_win_over_a_config(
    lambdasweep: Callable[..., Result], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        "--lambdas",
        "0.5",
        "--max-model-len",
        100,
        "--engine",
        "seed=4",
        "--limit",
        1,
        "--format",
        "cloze",
        "--out",
        "mine",
    ]
    assert lambdasweep("run", "--config", project / "sweep.toml", *given).code == 0
    run = RunDir(tmp_path / "mine")
    engine, tasks = run.sweep()["engine"], run.plan()["tasks"]
    assert (engine["max_model_len"], engine["block_size"], engine["extra"]) == (100, 64, {"seed": 4})
    assert {(task["format"], task["limit"], *task["lambdas"]) for task in tasks.values()} == {("cloze", 1, "0.5")}
    assert not (project / "runs").exists()
    task = f"only={project / 'metals.jsonl'}"
    assert lambdasweep("run", "--config", project / "sweep.toml", "--task", task, "--out", "other").code == 0
    assert list(RunDir(tmp_path / "other").plan()["tasks"]) == ["only"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (None, ["--config {file} cannot be read: No such file or directory"]),
        ("base = ", ["--config {file} is not TOML: Invalid value (at end of document)"]),
        (
            'bass = "x"\nlambda = "0,1"\ntp = "two"\nshots = true\nlambdas = [0, true]\nname = "x"\n',
            [
                "{file}: unknown key 'bass': did you mean base?",
                "{file}: unknown key 'lambda': did you mean lambdas?",
                "{file}: tp is 'two': give a whole number or auto",
                "{file}: shots is True: give a whole number",
                '{file}: lambdas is [0, True]: give a grid such as "0:1.5:0.1" or [0, 0.25, 1]',
                "{file}: unknown key 'name': use accelerator_type, address, aligned, aligned_revision, base, base_revision, "
                "dtype, engine, equivalence, format, generate, lam_map, lambdas, limit, margin, max_model_len, max_tokens, "
                "method, normaliser, out, p_true, parents, pmi, pp, refine, repeats, replicas, rescore, samples, seed, "
                "shots, system_prompt, task, temperature, template, think_end_token, tokenizer, tp, until, verbalised, "
                "verbalised_suffix, vocab",
            ],
        ),
        (
            "engine = 1\ntask = [1]",
            ["{file}: engine is not a table: write [engine]", "{file}: task is not a list of tables: write [[task]]"],
        ),
        (
            '[[task]]\nname = "a"\n[[task]]\n'
            '[[task]]\nname = "b"\nfile = "b.jsonl"\nsplit = "test"\nlimit = "all"\nshot = 5\n',
            [
                "{file}: [[task]] 1 (a): it needs file",
                "{file}: [[task]] 2: it needs name and file",
                "{file}: [[task]] 3 (b): unknown key 'split': use name, file, format, shots, seed, limit, template, "
                "system_prompt, repeats, temperature, max_tokens, until, normaliser, pmi, equivalence, think_end_token, "
                "p_true, verbalised, verbalised_suffix",
                "{file}: [[task]] 3 (b): limit is 'all': give a whole number",
                "{file}: [[task]] 3 (b): unknown key 'shot': did you mean shots?",
            ],
        ),
    ],
)
def test_a_bad_config(
    lambdasweep: Callable[..., Result], tmp_path: Path, text: str | None, problems: list[str]
) -> None:
    file = tmp_path / "sweep.toml"
    if text is not None:
        file.write_text(text)
    result = lambdasweep("run", "--config", file)
    assert result.code == 2
    assert result.err.startswith("lambdasweep: the sweep cannot be set up\n")
    assert result.problems == [problem.format(file=file) for problem in problems]


@pytest.mark.parametrize(
    ("given", "lambdas"),
    [
        ("0.1", ("0.1",)),
        ("[0, 0.1, 1.25]", ("0", "0.1", "1.25")),
        ('["0:0.3:0.1", 1, "-0.5"]', ("-0.5", "0", "0.1", "0.2", "0.3", "1")),
        ("[0.1234567]", None),
    ],
)
def test_a_grid_in_a_file_is_exact(tmp_path: Path, given: str, lambdas: tuple[str, ...] | None) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f"lambdas = {given}\nbase = 'a'\naligned = 'b'\nout = 'o'\ntemperature = 0.5\n")
    if lambdas is None:
        with pytest.raises(InputError, match=r"λ 0.1234567 has more than 6 decimals"):
            load_config({}, ["t=t.jsonl"], [], [], file)
        return
    config = load_config({}, ["t=t.jsonl"], ["g=g.jsonl"], [], file)
    assert config.lambdas == lambdas
    assert type(config.generate[0].temperature) is float
    assert config.generate[0].temperature == 0.5


def test_a_grid_of_several_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        'base = "a"\nout = "o"\n[aligned]\nsft = "s"\ndpo = "d"\n[lambdas]\nsft = [0, 0.5]\ndpo = "0:1:1"\n'
    )
    points = load_config({}, ["t=t.jsonl"], [], [], file).lambdas
    assert points == parse_points("dpo=0,1,sft=0,0.5", ("dpo", "sft"))


def test_a_config_cannot_set_what_flags_cannot(lambdasweep: Callable[..., Result], project: Path) -> None:
    file = project / "sweep.toml"
    file.write_text(file.read_text().replace("[engine]\n", '[engine]\nmodel = "gpt"\nthreads = "all"\n'))
    result = lambdasweep("run", "--config", file)
    assert result.code == 2
    assert "  - --engine cannot be used: model is set by lambdasweep: use --base and --aligned\n" in result.err


def test_a_begun_sweep_keeps_what_was_left_to_lambdasweep(
    begun: RunDir,
    lambdasweep: Callable[..., Result],
    flags: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same run goes on in a job with other cores: the threads of a rank stay, or its numbers might not be the same."""
    before = begun.sweep_json.read_bytes()
    monkeypatch.setattr("serve.settings.available_cores", lambda: list(range(64)))
    assert lambdasweep("run", *flags()).code == 0
    assert begun.sweep_json.read_bytes() == before
    assert lambdasweep("run", *flags(out=begun.root.parent / "new")).code == 0
    assert RunDir(begun.root.parent / "new").sweep()["engine"]["threads"] == 32
    shared = begun.root.parent / "shared"
    assert lambdasweep("run", *flags(out=shared), "--tp", 2, "--replicas", 3).code == 0
    assert RunDir(shared).sweep()["engine"]["threads"] == 64 // (2 * 3)
