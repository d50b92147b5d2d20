"""This script scores Parquet files with vLLM alone: `LLM.generate` with prompt logprobs, in a loop.

    python plain_vllm.py JOB.json

The job is {"model", "settings", "files", "out"}. For each file it writes the seconds of reading, tokenising and scoring (the
engine is started before) and the sum of the logprobs of each row's continuation, or of all of a prompt behind BOS.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from plain_engine import plain_engine

BATCH = 256  # so many rows are sent at a time


def main(job: dict[str, Any]) -> None:
    from transformers import AutoTokenizer
    from vllm import SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    llm = plain_engine(job["model"], job["settings"])
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    found = []
    for file in job["files"]:
        began = time.perf_counter()
        sums = []
        for batch in pq.ParquetFile(file).iter_batches(BATCH):
            prompts = batch.column("prompt").to_pylist()
            if "continuation" in batch.schema.names:
                texts = [a + b for a, b in zip(prompts, batch.column("continuation").to_pylist(), strict=True)]
                starts = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
                sequences = tokenizer(texts)["input_ids"]
            else:
                bos = tokenizer.bos_token_id
                sequences = [ids if ids[0] == bos else [bos, *ids] for ids in tokenizer(prompts)["input_ids"]]
                starts = [1] * len(sequences)
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in sequences], sampling, use_tqdm=False)
            for ids, start, output in zip(sequences, starts, outputs, strict=True):
                rows = output.prompt_logprobs
                sums.append(sum(rows[place][ids[place]].logprob for place in range(start, len(ids))))
        found.append({"seconds": time.perf_counter() - began, "sums": sums})
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
