"""This compares written answers and their metrics with those of lm-evaluation-harness's `hf` and `vllm` models.

    python benchmarks/answers_parity.py --pair DIR --data DIR [--quick | --tiny]

The tasks are like GSM8K (2 shots), like TriviaQA and like IFEval (through the chat template, where the pair has one): 100
documents of each, greedy, on the pair's base, in one dtype. Ours are the tables of a whole run. DIR of --data holds
gsm8k_500.jsonl and triviaqa_1000.jsonl.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from answer_tasks import (
    ENDS,
    GSM8K,
    INSTRUCTIONS,
    TRIVIAQA,
    read_rows,
    write_gsm8k,
    write_instructions,
    write_triviaqa,
)
from generate import in_process, written
from peers import LM_EVAL, engine_arguments, engine_settings, header, hf_arguments, lm_eval, parse_arguments
from tiny import WINDOW
from transformers import AutoTokenizer

from serve.settings import EngineSettings

DOCUMENTS = 100
NEW_TOKENS = {GSM8K: 64, TRIVIAQA: 32, INSTRUCTIONS: 64}
SHOTS = 2  # the hf model takes long over long contexts


def write_tasks(folder: Path, data: Path, documents: int, shots: int, new_tokens: dict[str, int]) -> dict[str, Path]:
    """Write the YAML file of each task."""
    gsm8k = read_rows(data / "gsm8k_500.jsonl", shots + documents)
    triviaqa = read_rows(data / "triviaqa_1000.jsonl", documents)
    return {
        GSM8K: write_gsm8k(folder, gsm8k, shots, new_tokens[GSM8K], ENDS),
        TRIVIAQA: write_triviaqa(folder, triviaqa, new_tokens[TRIVIAQA]),
        INSTRUCTIONS: write_instructions(folder, documents, new_tokens[INSTRUCTIONS]),
    }


def our_run(
    pair: Path, tasks: dict[str, Path], chat: dict[str, bool], folder: Path, settings: EngineSettings
) -> dict[str, dict[str, Any]]:
    """Run the tasks at λ = 0 with the command line; return the texts and lm-eval's metrics of each task."""
    config, out = folder / "sweep.toml", folder / "run"
    config.write_text(
        f'base = "{pair / "base"}"\naligned = "{pair / "aligned"}"\nlambdas = "0"\nout = "{out}"\nreplicas = 1\n'
        f'dtype = "{settings.dtype}"\nmax_model_len = {settings.max_model_len}\n'
        + "".join(
            f'[[task]]\nname = "{name}"\nfile = "lm-eval:{path}"\ntemplate = "{"chat" if chat[name] else "none"}"\n'
            for name, path in tasks.items()
        )
    )
    in_process([Path(sys.executable).with_name("lambdasweep"), "run", "--config", config], folder / "run.log")
    found = {}
    for name in tasks:
        generations = pq.read_table(out / "generations" / f"task={name}" / "lambda=0").sort_by("request_id")
        rows = pq.read_table(out / "lm_eval" / f"task={name}.parquet").to_pylist()
        found[name] = {
            "texts": generations["text"].to_pylist(),
            "metrics": {row["metric"]: row["value"] for row in rows},
        }
    return found


def main() -> None:
    arguments = parse_arguments(__doc__)
    pair, tiny = arguments.pair.resolve(), arguments.tiny
    documents = 6 if tiny else DOCUMENTS // (10 if arguments.quick else 1)
    settings = engine_settings(WINDOW if tiny else 2048)
    python = Path(sys.executable) if tiny else lm_eval()
    print(header("written answers, parity with lm-eval", settings, pair) + f"; {LM_EVAL}", flush=True)
    models = {"hf": hf_arguments(pair / "base", settings)}
    if not tiny:
        models["vllm"] = engine_arguments(pair / "base", settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new_tokens = dict.fromkeys(NEW_TOKENS, 8) if tiny else NEW_TOKENS
        tasks = write_tasks(folder, arguments.data, documents, 2 if tiny else SHOTS, new_tokens)
        chat = dict.fromkeys(tasks, False)
        chat[INSTRUCTIONS] = AutoTokenizer.from_pretrained(pair / "base").chat_template is not None
        ours = our_run(pair, tasks, chat, folder, settings)
        counted = {"outputs": 0, "output_mismatches": 0, "metrics": 0, "metric_mismatches": 0}
        for model, given in models.items():
            job = {"model": model, "arguments": given, "folder": str(folder), "tasks": chat, "limit": documents}
            # A vLLM process wants its environment; the hf model takes as many threads as there are cores.
            job |= {"settings": settings.to_json()}
            theirs = written("plain_answers.py", job, folder, "lm-eval", python=python)
            for task, own in ours.items():
                peer = theirs[task]
                unlike = sum(a != b for a, b in zip(own["texts"], peer["texts"], strict=True))
                wrong = sum(own["metrics"].get(key) != value for key, value in peer["metrics"].items())
                counted["outputs"] += len(peer["texts"])
                counted["output_mismatches"] += unlike
                counted["metrics"] += len(peer["metrics"])
                counted["metric_mismatches"] += wrong
                for key, value in peer["metrics"].items():
                    print(f"{task:18} {model:5} {key:45} {value:.4f}, ours {own['metrics'].get(key, float('nan')):.4f}")
                print(f"{task:18} {model:5} {unlike} of {len(peer['texts'])} outputs differ", flush=True)
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
