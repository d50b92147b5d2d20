"""This compares log-likelihoods and accuracies with those of lm-evaluation-harness's `hf` and `vllm` models.

    python benchmarks/parity.py --pair DIR --data DIR [--quick | --tiny]

The tasks are ARC-Easy and PIQA, in full text and letters, and LAMBADA: the first 200 documents of each, on the pair's base,
in one dtype. Both sides get texts, so tokenisation is compared too. DIR holds arc_easy.jsonl, piqa.jsonl and
lambada_1000.jsonl.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import (
    LM_EVAL,
    engine_arguments,
    engine_settings,
    header,
    hf_arguments,
    lm_eval,
    our_scores,
    parse_arguments,
    peer_scores,
    prompts,
    texts,
    without_repeats,
)
from tiny import WINDOW

from lambdasweep.tasks.documents import TaskSpec

Scores = list[list[Any]]  # [log-likelihood, greedy] of each request


def accuracies(spec: TaskSpec, scores: Scores) -> dict[str, float]:
    """Return acc and acc_norm as lm-eval computes them: the latter by log-likelihood per character of the choice."""
    if spec.name == "lambada":
        return {"acc": sum(greedy for _, greedy in scores) / len(scores)}
    rows = prompts(spec)
    found = {"acc": 0.0, "acc_norm": 0.0}
    begin = 0
    for row in rows:
        of_document = [score for score, _ in scores[begin : begin + len(row["choices"])]]
        begin += len(row["choices"])
        each = [score / len(choice) for score, choice in zip(of_document, row["choices"], strict=True)]
        found["acc"] += of_document.index(max(of_document)) == row["gold"]
        found["acc_norm"] += each.index(max(each)) == row["gold"]
    return {name: count / len(rows) for name, count in found.items()}


def main() -> None:
    arguments = parse_arguments(__doc__)
    pair = arguments.pair.resolve()
    settings = engine_settings(WINDOW if arguments.tiny else 2048)
    python = Path(sys.executable) if arguments.tiny else lm_eval()
    print(header("parity with lm-eval", settings, pair) + f"; {LM_EVAL}", flush=True)
    limit = 4 if arguments.tiny else 20 if arguments.quick else 200
    with tempfile.TemporaryDirectory() as folder:
        arc = without_repeats(arguments.data / "arc_easy.jsonl", Path(folder) / "arc.jsonl")
        piqa = without_repeats(arguments.data / "piqa.jsonl", Path(folder) / "piqa.jsonl")
        specs = {
            "arc-cloze": TaskSpec("arc", arc, limit=limit),
            "arc-letters": TaskSpec("arc", arc, format="letters", limit=limit),
            "piqa-cloze": TaskSpec("piqa", piqa, limit=limit),
            "piqa-letters": TaskSpec("piqa", piqa, format="letters", limit=limit),
            "lambada": TaskSpec("lambada", arguments.data / "lambada_1000.jsonl", limit=limit),
        }
        workloads = {name: texts(spec) for name, spec in specs.items()}
        ours = our_scores(pair, specs, settings, "0")
        models = {"hf": hf_arguments(pair / "base", settings)}
        if not arguments.tiny:
            models["vllm"] = engine_arguments(pair / "base", settings)
        peers = {name: peer_scores(name, given, workloads, settings, python) for name, given in models.items()}
        worst, mismatches = 0.0, 0
        for name, spec in specs.items():
            mine = accuracies(spec, ours[name]["scores"])
            for model, found in peers.items():
                pairs = zip(ours[name]["scores"], found[name]["scores"], strict=True)
                largest = max(abs(a[0] - b[0]) / max(abs(b[0]), 1e-9) for a, b in pairs)
                theirs = accuracies(spec, found[name]["scores"])
                worst, mismatches = max(worst, largest), mismatches + sum(mine[key] != theirs[key] for key in mine)
                shown = ", ".join(f"{key} {mine[key]:.4f} and {theirs[key]:.4f}" for key in mine)
                print(
                    f"{name:13} {model:5} {len(workloads[name]):5} requests: {shown}; differ by {largest:.1e} at most"
                )
    print(json.dumps({"max_rel_diff": worst, "acc_mismatches": mismatches}))


if __name__ == "__main__":
    main()
