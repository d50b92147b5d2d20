"""This compares the λ switch with vLLM's own reload of a merged checkpoint, and with a merge to disk and a new engine.

    python benchmarks/switch.py --pair DIR [--shape 8b] [--parents TIER] [--quick]
    python benchmarks/switch.py --tiny    # the demo pair, without (c): does it run?

DIR holds `base` and `aligned` (benchmarks/real_pair.py makes one); with --shape it is made if it is not there, of that shape
with random weights. These run in turn, the first two on one engine:

    (a) lambdasweep's switch, each to another λ
    (b) vLLM's `reload_weights` from a merged checkpoint on disk
    (c) mergekit's linear merge to disk and a cold engine: two fresh processes, imports included, engine settings as ours

Bytes moved by (a) are both parents read and the live weights written, once each, which is the least it could be; the bound
is the bandwidth of a plain copy, measured in the same process with the same threads, or of copies to the GPU where the
parents are in host memory. Live weights, (b) and a fresh engine must give equal numbers, all of θ(λ) as we export it; (b)
does not where vLLM leaves a tied LM head behind on the CPU. mergekit's merge is shown beside them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from peers import MERGEKIT, ROOT, environment, header, merge, merge_config
from random_pair import SHAPES, write_random_pair

from lambdasweep.demo import BASE
from lambdasweep.takehome.export import export_point
from lambdasweep.takehome.point import from_flags
from serve.settings import EngineSettings, available_cores, installed_device

LAM = "0.35"  # the λs of the merged checkpoints
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def copy_bandwidth(device: str, tier: str) -> float:
    """Return bytes a second: a plain copy (bytes read and written), or host to GPU where that is what bounds the tier."""
    import torch

    size = 1 << 28
    source = torch.empty(size, dtype=torch.uint8, device="cpu" if tier != "device" else device)
    counted = 2 * size
    if device == "cuda" and tier != "device":
        source, counted = source.pin_memory(), size
    source.fill_(1)
    target = torch.zeros(size, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return counted / min(seconds)


class PeakMemory:
    """Return how far this process's own memory (no page cache) rises above where it began, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self._begin = self._now()
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._now() - self._begin)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Run inside a process of its own: (a) and (b) on one engine, or the probe alone on a fresh one."""
    from serve.engine import Engine
    from serve.start import process_environment

    settings = EngineSettings.from_json(job["settings"])
    os.environ.update(process_environment(settings, job["cores"]))
    base, aligned = Path(job["base"]), Path(job["aligned"])
    if "merged" not in job:
        return {"probe": Engine(base, None, settings)._probe()}
    parts = {"arithmetic": 0.0, "packing": 0.0}
    time_parts(parts)
    engine = Engine(base, aligned, settings, job["parents"])
    if engine.fallback:
        sys.exit(f"switch: no resident route: {engine.fallback}")
    tier = engine.route.split()[-1]
    bandwidth = copy_bandwidth(settings.device, tier)
    merged = {"weights_path": job["merged"]}
    ours, theirs = [], []
    engine.switch("0.5")
    engine._llm.collective_rpc("reload_weights", kwargs=merged)
    parts.update(dict.fromkeys(parts, 0.0))
    for turn in range(job["turns"]):
        began = time.perf_counter()
        engine.switch(f"{0.4 + 0.05 * turn:.2f}")
        between = time.perf_counter()
        engine._llm.collective_rpc("reload_weights", kwargs=merged)
        ours.append(between - began)
        theirs.append(time.perf_counter() - between)
    their_probe = engine._probe()
    parts = {name: seconds / job["turns"] for name, seconds in parts.items()}
    with PeakMemory() as peak:
        engine.switch(LAM)
    live = engine._probe()
    return {
        "tier": tier,
        "bandwidth": bandwidth,
        "switch": ours,
        "reload": theirs,
        "probe": live,
        "their_probe": their_probe,
        "parts": parts,
        "peak_bytes": peak.bytes,
    }


def time_parts(parts: dict[str, float]) -> None:
    """Have the resident route tell where its time goes; on the CPU, where calls are over when they return."""
    from serve.switch.packing import Packer
    from serve.switch.resident import ResidentRoute

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = original(*arguments)
            parts[part] += time.perf_counter() - began
            return result

        setattr(owner, name, call)

    timed(ResidentRoute, "_fill", "arithmetic")
    timed(Packer, "pack", "packing")
    timed(Packer, "finish", "packing")


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job, default=str))
        command = [sys.executable, __file__, "--child", str(path)]
        with open(path.with_suffix(".log"), "w+") as log:
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode:
                log.seek(0)
                sys.exit(f"switch: an engine failed:\n{log.read()[-3000:]}")
        result: dict[str, Any] = json.loads(path.with_suffix(".out").read_text())
        return result


# In the usual way a user starts this for each λ: the same engine without anything of ours, ready to score.
COLD = """
import sys, json
from vllm import LLM
LLM(**json.loads(sys.argv[1]))
"""


def cold(settings: EngineSettings, cores: list[int], model: Path) -> float:
    from serve.start import process_environment

    arguments = {
        "model": str(model),
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len + 1,
        "tensor_parallel_size": settings.tensor_parallel,
        "distributed_executor_backend": "uni" if settings.tensor_parallel == 1 else "mp",
        "block_size": settings.block_size,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "enable_prefix_caching": True,
        "enforce_eager": settings.device == "cpu",
        "seed": 0,
    }
    environment_of_engine = os.environ | process_environment(settings, cores)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", COLD, json.dumps(arguments)],
        env=environment_of_engine,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def difference(one: list[float], two: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with base and aligned")
    parser.add_argument("--shape", choices=SHAPES, help="make a random pair of this shape where PAIR is not there")
    parser.add_argument("--parents", default="auto", help="tier of the parents")
    parser.add_argument("--threads", type=int, help="CPU threads; all cores by default")
    parser.add_argument("--quick", action="store_true", help="3 switches and one cold start")
    parser.add_argument("--tiny", action="store_true", help="the demo pair, 1 switch, and nothing of mergekit")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        result = child(json.loads(arguments.child.read_text()))
        arguments.child.with_suffix(".out").write_text(json.dumps(result))
        return
    if arguments.tiny:
        arguments.pair = BASE.parent
    if arguments.pair is None:
        parser.error("--pair is needed: make one with benchmarks/real_pair.py, or give --shape too")
    pair = arguments.pair.resolve()
    if arguments.shape and not pair.exists():
        write_random_pair(pair, arguments.shape)

    from merge.pair import open_pair

    opened = open_pair(str(pair / "base"), str(pair / "aligned"))
    device, cores = installed_device(), available_cores()[: arguments.threads]
    stored = {DTYPES[info.dtype] for info in opened.base.tensors.values()}.pop()
    settings = EngineSettings(
        device=device,
        dtype="float32" if device == "cpu" else stored,
        max_model_len=512,
        threads=len(cores) if device == "cpu" else 0,
        block_size=32 if device == "cpu" else 16,
        kv_cache_bytes=256 << 20 if device == "cpu" else 4 << 30,
    )
    if arguments.tiny:
        print(header("λ switch", settings, pair), flush=True)
    else:
        environment("mergekit", MERGEKIT)  # this does not count as time
        print(header("λ switch", settings, pair) + f"; {MERGEKIT} in an environment of its own", flush=True)
    turns, colds = (1, 0) if arguments.tiny else (3, 1) if arguments.quick else (10, 3)
    with tempfile.TemporaryDirectory(dir=None if arguments.tiny else pair.parent) as folder:
        scratch = Path(folder)
        source = from_flags(None, str(pair / "base"), str(pair / "aligned"), None, None, LAM)
        export_point(source, scratch / "export", "base", "5GB", print)
        (scratch / "merge.yaml").write_text(merge_config(pair / "base", pair / "aligned", LAM, stored))
        common = {"settings": settings.to_json(), "cores": cores, "parents": arguments.parents}
        parents = {"base": pair / "base", "aligned": pair / "aligned"}
        usual = []
        for turn in range(colds):
            merging = merge(scratch / "merge.yaml", scratch / "mergekit")
            usual.append((merging, cold(settings, cores, scratch / "mergekit")))
            if turn < colds - 1:
                shutil.rmtree(scratch / "mergekit")
        live = run_child({**common, **parents, "merged": scratch / "export", "turns": turns})

        def fresh(checkpoint: Path) -> list[float]:
            probe: list[float] = run_child({**common, "base": checkpoint, "aligned": checkpoint})["probe"]
            return probe

        exported = fresh(scratch / "export")
        mergekits = fresh(scratch / "mergekit") if usual else None
    report(opened.nbytes, opened.base.tensors, settings, live, exported, mergekits, usual)


def report(
    parent_bytes: int,
    tensors: dict[str, Any],
    settings: EngineSettings,
    live: dict[str, Any],
    exported: list[float],
    mergekits: list[float] | None,
    usual: list[tuple[float, float]],
) -> None:
    """Print the table and the JSON line."""
    switch, reload = statistics.median(live["switch"]), statistics.median(live["reload"])
    cold_s = statistics.median(first + second for first, second in usual) if usual else None
    width = 4 if settings.dtype == "float32" else 2
    live_bytes = sum(info.nbytes // (4 if info.dtype == "F32" else 2) for info in tensors.values()) * width
    moved = parent_bytes + (live_bytes if live["tier"] == "device" or settings.device == "cpu" else 0)
    bandwidth = live["bandwidth"]
    print(f"parents: {live['tier']}, {parent_bytes / 1e9:.2f} GB; live {live_bytes / 1e9:.2f} GB")
    print(f"(a) lambdasweep's switch            {switch:8.3f} s  median of {len(live['switch'])}")
    print(
        f"(b) vLLM's reload_weights           {reload:8.3f} s  median of {len(live['reload'])}, of one merged checkpoint"
    )
    if cold_s is not None:
        merging = statistics.median(first for first, _ in usual)
        starting = statistics.median(second for _, second in usual)
        print(f"(c) mergekit {merging:.1f} s + cold engine {starting:.1f} s {cold_s:8.3f} s  median of {len(usual)}")
        print(f"(c)/(a) {cold_s / switch:.0f}")
    print(f"(b)/(a) {reload / switch:.2f}")
    print(
        f"{moved / 1e9:.2f} GB moved at {moved / switch / 1e9:.1f} GB/s; a plain copy runs at {bandwidth / 1e9:.1f} GB/s: "
        f"{switch * bandwidth / moved:.2f} × the bound"
    )
    if settings.device == "cpu":
        known = sum(live["parts"].values())
        mean = statistics.mean(live["switch"])
        print(
            f"of {mean:.3f} s (mean): reading, lerp and conversion {live['parts']['arithmetic']:.3f} s, packing for the "
            f"kernels {live['parts']['packing']:.3f} s, all else {mean - known:.3f} s"
        )
        print(f"memory of its own rose by {live['peak_bytes'] / 1e6:.1f} MB in a switch")
    print("largest difference of a probe prompt's logprobs (nats)")
    print(f"  live and a fresh engine on our export           {difference(live['probe'], exported):.3g}")
    print(f"  vLLM's reload_weights of it and a fresh engine  {difference(live['their_probe'], exported):.3g}")
    if mergekits is not None:
        print(f"  live and a fresh engine on mergekit's merge     {difference(live['probe'], mergekits):.3g}")
    print(
        json.dumps(
            {
                "switch_s": switch,
                "reload_s": reload,
                "cold_s": cold_s,
                "cold_over_switch": cold_s and cold_s / switch,
                "reload_over_switch": reload / switch,
                "bandwidth_fraction": moved / switch / bandwidth,
                "max_logprob_diff": max(difference(live[name], exported) for name in ("probe", "their_probe")),
                "our_logprob_diff": difference(live["probe"], exported),
                "vllm_reload_logprob_diff": difference(live["their_probe"], exported),
                "mergekit_logprob_diff": mergekits and difference(live["probe"], mergekits),
                "peak_bytes": live["peak_bytes"],
            }
        )
    )


if __name__ == "__main__":
    main()
