"""Imports follow the data flow of the tree, and `--help`, `status` and `report` run without torch, vllm or ray."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.sources import parsed

# The tower from the ground up: what each folder stands on. A folder may import all that is below it and nothing else of
# ours, wherever the import stands. `calibration` stands beside the engines and not under them.
STANDS_ON: dict[str, tuple[str, ...]] = {
    "contract": (),
    "merge": ("contract",),
    "calibration": ("contract",),
    "serve": ("merge",),
    "ray_jobs": ("serve",),
    "lambdasweep": ("ray_jobs", "calibration"),
    "benchmarks": ("lambdasweep",),
}
PACKAGED = tuple(folder for folder in STANDS_ON if folder != "benchmarks")
# These packaged folders may know a heavy library, wherever the import stands.
MAY_KNOW = {
    "torch": {"merge", "serve"},
    "vllm": {"serve"},
    "ray": {"ray_jobs"},
    "safetensors": {"merge", "serve"},
    "transformers": {"lambdasweep.tasks", "merge.config_meaning"},
    "lm_eval": {"lambdasweep.tasks"},
    "datasets": {"lambdasweep.tasks"},
    "wandb": {"lambdasweep.exchange"},
    "mlflow": {"lambdasweep.exchange"},
    "trackio": {"lambdasweep.exchange"},
    "altair": {"calibration.report"},
    "vl_convert": {"calibration.report"},
    "jinja2": {"calibration.report", "lambdasweep.tasks"},
    "huggingface_hub": {"merge", "lambdasweep.exchange"},
    "fastapi": {"serve.http"},
    "triton": {"serve.switch.fused"},
}
# These know neither torch nor vllm even so: a plan is made from headers and settings alone.
LIGHT = {
    "merge.adapter",
    "merge.checkpoint",
    "merge.heads",
    "merge.file_layout",
    "merge.lam_map",
    "merge.line",
    "merge.model_sizes",
    "merge.pair",
    "merge.parents",
    "merge.quantised",
    "merge.remote_parent",
    "merge.text_part",
    "merge.fingerprints",
    "merge.vocabulary",
    "serve.last_words",
    "serve.needs",
    "serve.refusals",
    "serve.runnable",
    "serve.settings",
    "serve.switch.tiers",
}
HEAVY = ("torch", "vllm", "ray", "transformers", "safetensors", "huggingface_hub", "lm_eval", "datasets")
# Only the report and `plot_reliability` load these.
PLOTTING = ("altair", "vl_convert", "jinja2")


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name."""
    found = {}
    for folder in STANDS_ON:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(name: str, source: str) -> tuple[tuple[str, str, int], ...]:
    """Return (module imported, `top`, `function` or `types`, line) of every import of a module.

    `from a import b` is an import of `a.b` where that is a module of ours, else of `a`. `types` is a `TYPE_CHECKING` block.
    """

    def walk(node: ast.AST, place: str) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, place, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: write imports in full"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module, place, node.lineno
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, "types")
            for child in node.orelse:
                yield from walk(child, place)
        else:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                place = "function"
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr):  # no expression has a statement in it
                    yield from walk(child, place)

    return tuple(walk(parsed(source), "top"))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def below(folder: str) -> set[str]:
    return {floor for under in STANDS_ON[folder] for floor in {under, *below(under)}}


def offences(name: str, source: str) -> list[str]:
    """Return what a module imports that it must not, one line each."""
    folder = name.partition(".")[0]
    found = []
    for imported, place, line in imports(name, source):

        def offence(why: str, line: int = line) -> None:
            found.append(f"{name} line {line}: {why}")

        library = imported.partition(".")[0]
        if library == "tests":
            offence(f"{folder} imports {imported}: only tests know tests")
        elif library in STANDS_ON:
            if library != folder and library not in below(folder):
                offence(f"{folder} imports {imported}, which is not below it")
            elif folder == "lambdasweep" and library not in (folder, "contract") and place == "top":
                offence(f"{imported} is imported at the top: import it where it is used")
        elif library in MAY_KNOW and folder in PACKAGED and place != "types":
            if not any(within(name, allowed) for allowed in MAY_KNOW[library]):
                offence(f"{folder} knows {library}")
            elif name in LIGHT and library != "huggingface_hub":
                offence(f"{name} knows {library}")
            elif folder == "lambdasweep" and place != "function":
                offence(f"{library} is imported at the top: import it where it is used")
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_follow_the_tree(name: str) -> None:
    assert offences(name, modules()[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("contract.grid", "from contract.errors import GridError", 0),
        ("contract.grid", "def f():\n    from lambdasweep.config import SweepConfig", 1),
        ("contract.rundir", "from lambdasweep import record", 1),
        ("contract.schemas", "if TYPE_CHECKING:\n    import merge.pair", 1),
        ("lambdasweep.prepare", "from merge.pair import open_pair", 1),
        ("lambdasweep.prepare", "try:\n    import serve.settings\nexcept ImportError:\n    pass", 1),
        ("lambdasweep.prepare", "class A:\n    import ray_jobs", 1),
        ("lambdasweep.prepare", "if TYPE_CHECKING:\n    from merge.pair import Pair\nelse:\n    import calibration", 1),
        ("lambdasweep.prepare", "def f():\n    from merge.pair import open_pair", 0),
        ("lambdasweep.prepare", "def f():\n    import torch", 1),
        ("lambdasweep.tasks.requests", "import transformers", 1),
        ("lambdasweep.tasks.requests", "def f():\n    from transformers import AutoTokenizer", 0),
        ("lambdasweep.prepare", "def f():\n    from transformers import AutoTokenizer", 1),
        ("lambdasweep.tasks.lm_eval_tasks.load", "from lm_eval.tasks import TaskManager", 1),
        ("lambdasweep.tasks.lm_eval_tasks.load", "def f():\n    from lm_eval.tasks import TaskManager", 0),
        ("lambdasweep.prepare", "def f():\n    import lm_eval", 1),
        ("calibration.terminal.lm_eval", "def f():\n    import lm_eval", 1),
        ("calibration.metrics.predictions", "def f():\n    import torch", 1),
        ("calibration.analyse", "def f():\n    import altair", 1),
        ("lambdasweep.notebook", "def f():\n    import altair", 1),
        ("merge.pair", "if not TYPE_CHECKING:\n    import torch", 1),
        ("benchmarks.simulate", "from tests.support.paths import ROOT", 1),
        ("calibration.report.page", "import vl_convert", 0),
        ("lambdasweep.cli", "def f():\n    import vl_convert", 1),
        ("calibration.metrics.predictions", "from lambdasweep.config import SweepConfig", 1),
        ("calibration.metrics.predictions", "import merge", 1),
        ("merge.pair", "from serve.settings import EngineSettings", 1),
        ("merge.pair", "def f():\n    import torch", 1),
        ("merge.interpolate", "import torch", 0),
        ("merge.interpolate", "import vllm", 1),
        ("serve.settings", "def f():\n    from vllm.config import ModelConfig", 1),
        ("serve.engine", "from ray_jobs.units import Unit", 1),
        ("serve.engine", "import ray", 1),
        ("ray_jobs.replica", "from lambdasweep.cli import app", 1),
        ("ray_jobs.replica", "def f():\n    import torch.cuda", 1),
        ("ray_jobs.replica", "from calibration.metrics.predictions import ece", 1),
        ("ray_jobs.replica", "import ray.exceptions", 0),
        ("ray_jobs.replica", "from merge.line import STRAIGHT", 0),
        ("merge.pair", "def f():\n    import calibration", 1),
        ("lambdasweep.sweep", "def f():\n    from benchmarks.simulate import simulate", 1),
        (
            "benchmarks.simulate",
            "from lambdasweep.sweep import run_sweep\nfrom serve.settings import EngineSettings\nimport torch",
            0,
        ),
    ],
)
def test_the_rule_sees_what_it_is_about(name: str, source: str, count: int) -> None:
    assert len(offences(name, source)) == count


def test_no_two_files_import_each_other() -> None:
    """Neither do three or more in a circle, wherever their imports stand."""
    graph = {
        name: {one for one, *_ in imports(name, path.read_text(encoding="utf-8")) if one in modules() and one != name}
        for name, path in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        for one, _, line in imports(path.stem, source) if re.search(r"\btests\b.*\b(unit|real)\b", source) else ():
            assert not one.startswith(("tests.unit", "tests.real")), f"{path} line {line}: put it into tests/support"


# What each command loads, in an order in which none may load what an earlier one must not.
LOADS = {
    "help": "import runpy; sys.argv = ['lambdasweep', '--help']\ntry: runpy.run_module('lambdasweep', run_name='__main__')\n"
    "except SystemExit as end: assert end.code == 0, end.code",
    "plan": "import lambdasweep.monitor.status, lambdasweep.plan, lambdasweep.tasks\n"
    "import merge.pair, serve.settings, ray_jobs.scheduler",
    "report": "import calibration.analyse, calibration.terminal.tables, calibration.frontier.frontier, lambdasweep.notebook",
    "figures": "import calibration.report.write",
}


@pytest.mark.slow
def test_light_commands_load_nothing_heavy() -> None:
    """One process loads the commands one after the other, and tells after each what is there."""
    told = [
        f"{code}\nprint({name!r}, *[one for one in {HEAVY + PLOTTING} if one in sys.modules])"
        for name, code in LOADS.items()
    ]
    ask = "\n".join(["import sys", *told])
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith((*LOADS,))]
    found = {name: set(loaded) for name, *loaded in lines}
    found["figures"] -= {*PLOTTING}
    assert [(name, found[name]) for name in LOADS if found[name]] == []
    assert "Usage: " in done.stdout


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaged = settings["tool"]["setuptools"]["packages"]
    assert sorted(packaged) == sorted(name for name, path in modules().items() if path.name == "__init__.py")
    assert sorted(settings["tool"]["mypy"]["files"]) == sorted(STANDS_ON)
    data = settings["tool"]["setuptools"]["package-data"]["calibration.report"]
    strange = [path.name for path in (ROOT / "calibration/report").iterdir() if path.suffix not in (".py", "")]
    assert sorted(data) == sorted(strange)
