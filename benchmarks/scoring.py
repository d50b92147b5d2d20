"""This compares scoring with lm-evaluation-harness's vLLM backend, on the same model, prompts, threads and engine settings.

    python benchmarks/scoring.py --pair DIR --data DIR [--quick | --tiny]

There are four workloads of ARC-Easy: five-shot letter questions; five-shot, zero-shot and zero-shot with a long context
(150 tokens or more: text of LAMBADA in front of the question), all in full text. Each side runs in a process of its own;
the engine's start is not counted. Beside the times it shows the tokens we compute over the fewest possible at the cache's
block size.

DIR holds arc_easy.jsonl and lambada_1000.jsonl; --pair is what benchmarks/real_pair.py makes; the model is its base.
"""

import json
import sys
import tempfile
from pathlib import Path

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
    texts,
    without_repeats,
)
from tiny import WINDOW

from lambdasweep.tasks.documents import TaskSpec

LONG_CHARACTERS = 900  # characters of English text, which are more than 150 tokens
SIZES = {"letters": 100, "cloze_fewshot": 40, "cloze_long": 100, "cloze_short": 250}


def long_contexts(arc: Path, lambada: Path, out: Path) -> Path:
    """Put passages in front of the questions."""
    passages = iter([json.loads(line)["context"] for line in lambada.read_text(encoding="utf-8").splitlines()])
    rows = []
    for line in arc.read_text(encoding="utf-8").splitlines()[: SIZES["cloze_long"]]:
        row, text = json.loads(line), ""
        while len(text) < LONG_CHARACTERS:
            text += next(passages) + "\n"
        rows.append({**row, "query": text + row["query"]})
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out


def main() -> None:
    arguments = parse_arguments(__doc__)
    pair = arguments.pair.resolve()
    settings = engine_settings(WINDOW if arguments.tiny else 2048)
    python = Path(sys.executable) if arguments.tiny else lm_eval()  # this does not count as time
    print(header("scoring", settings, pair) + f"; {LM_EVAL}", flush=True)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        arc = without_repeats(arguments.data / "arc_easy.jsonl", Path(folder) / "arc.jsonl")
        long = long_contexts(arc, arguments.data / "lambada_1000.jsonl", Path(folder) / "long.jsonl")
        share = 100 if arguments.tiny else 10 if arguments.quick else 1
        sizes = {name: max(count // share, 4) for name, count in SIZES.items()}
        specs = {
            "letters": TaskSpec("arc", arc, format="letters", shots=5, limit=sizes["letters"]),
            "cloze_fewshot": TaskSpec("arc", arc, shots=5, limit=sizes["cloze_fewshot"]),
            "cloze_long": TaskSpec("arc", long, limit=sizes["cloze_long"]),
            "cloze_short": TaskSpec("arc", arc, limit=sizes["cloze_short"]),
        }
        ours = our_scores(pair, specs, settings, "0")
        workloads = {name: texts(spec) for name, spec in specs.items()}
        model = "hf" if arguments.tiny else "vllm"
        given = (hf_arguments if arguments.tiny else engine_arguments)(pair / "base", settings)
        theirs = peer_scores(model, given, workloads, settings, python)
    largest = 0.0
    computed = fewest = 0
    for name, spec in specs.items():
        mine, other = ours[name], theirs[name]
        differences = [
            abs(a[0] - b[0]) / max(abs(b[0]), 1e-9) for a, b in zip(mine["scores"], other["scores"], strict=True)
        ]
        largest = max(largest, *differences)
        computed, fewest = computed + mine["computed"], fewest + mine["fewest"]
        result[f"{name}_speedup"] = other["seconds"] / mine["seconds"]
        print(
            f"{name:14} {spec.limit:4} documents, {mine['requests']:4} requests: ours {mine['seconds']:6.1f} s, lm-eval "
            f"{other['seconds']:6.1f} s, {other['seconds'] / mine['seconds']:5.1f} ×; {mine['computed']} tokens computed, "
            f"{mine['computed'] / mine['fewest']:.3f} × the fewest",
            flush=True,
        )
    print(f"largest relative difference of a log-likelihood: {largest:.2g}")
    print(json.dumps(result | {"token_ratio": computed / fewest, "max_rel_diff": largest}))


if __name__ == "__main__":
    main()
