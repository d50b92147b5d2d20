"""This compares writing θ(λ) to disk by lambdasweep, by mergekit's linear merge, and by a plain copy of as many bytes.

    python benchmarks/export.py --pair DIR [--shape 1b] [--quick] | --tiny

DIR holds `base` and `aligned` (benchmarks/real_pair.py makes one); with --shape it is made if it is not there, of that shape
with random weights. Both parents are read once, so that they are in the page cache as far as it holds them. Then these
run in turn:

    (a) `lambdasweep export`: a fresh process, imports, fingerprints of both parents and all else included
    (b) mergekit-yaml: a fresh process too; with its lazy loader, CPU
    (c) the streaming of (a) alone, in this process: from opened parents to flushed files
    (d) a plain copy of (c)'s weight files, in this process, in blocks of 8 MB

(a), (c) and (d) flush what they write (fsync) before their time is over. mergekit does not flush; its files are flushed
after its time, and what that took is shown beside it. peak_gib is the peak resident memory of (a) and of (b), files mapped
into memory included. The largest differences are from θ(λ) in float64, in units in the last place of the checkpoint's dtype,
where |θ| ≥ 2⁻⁸ · max(|base|, |aligned|).
"""

import argparse
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from peers import MERGEKIT, ROOT, environment, merge_config
from random_pair import SHAPES, write_random_pair
from tiny import write_tiny_inputs

LAM = "0.35"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
DIGITS = {"float32": 23, "bfloat16": 7, "float16": 10}
SMALLEST = {"float32": -126, "bfloat16": -126, "float16": -14}


def measured(command: list[str | Path]) -> tuple[float, float]:
    """Run a command in a fresh process; return its seconds and its peak resident memory in GiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{said.decode()[-3000:]}")
    return seconds, usage.ru_maxrss / (1 << 20)


def flush(directory: Path) -> float:
    """Flush a directory's files to the disk and return the seconds that took."""
    began = time.perf_counter()
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began


def copy(source: Path, out: Path) -> float:
    """Copy the weight files of a checkpoint, flush them, and return the seconds that took."""
    buffer = bytearray(8 << 20)
    out.mkdir()
    began = time.perf_counter()
    for file in sorted(source.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as from_, open(out / file.name, "wb", buffering=0) as to:
            while count := from_.readinto(buffer):
                to.write(memoryview(buffer)[:count])
            os.fsync(to.fileno())
    return time.perf_counter() - began


def warm(pair: Path) -> None:
    """Read both parents once."""
    buffer = bytearray(8 << 20)
    for file in pair.glob("*/*.safetensors"):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def max_ulp(pair: Path, made: Path, lam: str) -> float:
    """Return the largest difference of a checkpoint from θ(λ) in float64, in ulp, tensor by tensor."""
    import torch
    from safetensors import safe_open

    def lazily(directory: Path) -> dict[str, Callable[[], torch.Tensor]]:
        found: dict[str, Callable[[], torch.Tensor]] = {}
        for file in directory.glob("*.safetensors"):
            opened = safe_open(file, framework="pt")
            names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            found |= {name: functools.partial(opened.get_tensor, name) for name in names}
        return found

    base, aligned, ours = lazily(pair / "base"), lazily(pair / "aligned"), lazily(made)
    largest = 0.0
    for name, load in ours.items():
        for one, two, found in zip(
            *(torch.split(whole.view(-1), 1 << 22) for whole in (base[name](), aligned[name](), load())), strict=True
        ):
            dtype = str(found.dtype).removeprefix("torch.")
            a, b = one.double(), two.double()
            line = a + float(lam) * (b - a)
            ulp = torch.ldexp(
                torch.ones_like(line), (torch.frexp(line).exponent - 1).clamp(min=SMALLEST[dtype]) - DIGITS[dtype]
            )
            wide = line.abs() >= 2.0**-8 * torch.maximum(a.abs(), b.abs())
            errors = ((found.double() - line).abs() / ulp)[wide]
            largest = max(largest, errors.max().item() if len(errors) else 0.0)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pair", type=Path, help="folder with base and aligned")
    parser.add_argument("--shape", choices=SHAPES, help="make a random pair of this shape where PAIR is not there")
    parser.add_argument("--quick", action="store_true", help="one turn instead of 5")
    parser.add_argument("--tiny", action="store_true", help="the demo pair, one turn, and no peer")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.pair = write_tiny_inputs(Path(tempfile.mkdtemp()) / "tiny")
    if arguments.pair is None:
        parser.error("--pair is needed")
    pair = arguments.pair.resolve()
    if arguments.shape and not pair.exists():
        write_random_pair(pair, arguments.shape)
    # The time to make mergekit's environment does not count.
    mergekit = None if arguments.tiny else environment("mergekit", MERGEKIT).with_name("mergekit-yaml")

    from merge.export import ExportPlan, export
    from merge.pair import open_pair
    from serve.machine import hardware
    from serve.settings import available_cores

    opened = open_pair(str(pair / "base"), str(pair / "aligned"))
    stored = {DTYPES[info.dtype] for info in opened.base.tensors.values()}.pop()
    threads = len(available_cores())
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("lambdasweep", "torch", "safetensors"))
    print(f"export\n{hardware('cpu')}, {threads} cores, Python {platform.python_version()}, {versions}, {MERGEKIT}")
    print(f"{pair}: {stored}, {opened.base.nbytes / 1e9:.2f} GB each, λ = {LAM}; parents in the page cache", flush=True)
    ours, theirs, flushes, streams, copies = [], [], [], [], []
    with tempfile.TemporaryDirectory(dir=pair.parent) as folder:
        scratch = Path(folder)
        config = scratch / "merge.yaml"
        config.write_text(merge_config(pair / "base", pair / "aligned", LAM, stored))
        command: list[str | Path] = [sys.executable, "-m", "lambdasweep", "export", "--lam", LAM]
        command += ["--base", pair / "base", "--aligned", pair / "aligned", "--out", scratch / "ours"]
        plan = ExportPlan(opened, {}, LAM, "aligned", scratch / "stream", 5 * 10**9)
        for _ in range(1 if arguments.quick or arguments.tiny else 5):
            warm(pair)
            for out in scratch.iterdir():
                if out.is_dir():
                    shutil.rmtree(out)
            os.sync()
            ours.append(measured(command))
            if mergekit:
                theirs.append(measured([mergekit, config, scratch / "mergekit", "--lazy-unpickle", "--quiet"]))
                flushes.append(flush(scratch / "mergekit"))
            began = time.perf_counter()
            export(plan, "", threads + 2, print)
            streams.append(time.perf_counter() - began)
            copies.append(copy(scratch / "stream", scratch / "copy"))
        our_ulp = max_ulp(pair, scratch / "ours", LAM)
        their_ulp = max_ulp(pair, scratch / "mergekit", LAM) if mergekit else 0.0
    our_s, our_gib = statistics.median(seconds for seconds, _ in ours), max(peak for _, peak in ours)
    stream_s, copy_s = (statistics.median(runs) for runs in (streams, copies))
    size = opened.base.nbytes / 1e9

    def row(name: str, seconds: float, rest: str) -> None:
        print(f"{name:34} {seconds:8.2f} s {size / seconds:6.2f} GB/s written  {rest}")

    print(f"medians of {len(ours)}")
    row("(a) lambdasweep export", our_s, f"peak {our_gib:.2f} GiB, {our_ulp:.4f} ulp")
    found = {"copy_ratio": stream_s / copy_s, "peak_gib": our_gib, "max_ulp": our_ulp, "export_s": our_s}
    if theirs:
        their_s, their_gib = statistics.median(seconds for seconds, _ in theirs), max(peak for _, peak in theirs)
        rest = f"peak {their_gib:.2f} GiB, {their_ulp:.4f} ulp, and {statistics.median(flushes):.2f} s to flush"
        row("(b) mergekit", their_s, rest)
        found |= {"mergekit_over_ours": their_s / our_s, "mergekit_peak_gib": their_gib}
        found |= {"mergekit_max_ulp": their_ulp, "mergekit_s": their_s}
    row("(c) the streaming of (a)", stream_s, "")
    row("(d) a plain copy", copy_s, "")
    print(json.dumps(found | {"stream_s": stream_s, "copy_s": copy_s}))


if __name__ == "__main__":
    main()
