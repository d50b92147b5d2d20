"""This script writes answers with vLLM alone, or with one of lm-eval's models, in a process of its own.

    python plain_answers.py vllm JOB.json
    python plain_answers.py lm-eval JOB.json

The job of vllm is {"model", "settings", "prompts": token ids, "max_tokens", "out"}; the script writes the best seconds of
three of `vllm.LLM.generate` and the tokens that it made. The job of lm-eval is {"model": "hf" or "vllm", "arguments",
"folder" of YAML files, "tasks": {name: whether it goes through the chat template}, "limit", "out"}; the script writes the
texts and the metrics of each task.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

TRIES = 3


def with_vllm(job: dict[str, Any]) -> dict[str, Any]:
    from plain_engine import plain_engine
    from vllm import SamplingParams

    llm = plain_engine(job["model"], job["settings"])
    plain = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], ignore_eos=True, detokenize=False)
    seconds = []
    for _ in range(TRIES):
        llm.reset_prefix_cache()
        began = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], plain, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}


def with_lm_eval(job: dict[str, Any]) -> dict[str, Any]:
    from lm_eval import evaluator
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    model = get_model(job["model"])(**job["arguments"])
    written = {}
    for task, chat in job["tasks"].items():
        found = evaluator.simple_evaluate(
            model=model,
            tasks=[task],
            limit=job["limit"],
            apply_chat_template=chat,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=TaskManager(include_path=job["folder"], include_defaults=False),
        )
        samples = {one["doc_id"]: one["resps"][0][0] for one in found["samples"][task]}
        results = found["results"][task].items()
        written[task] = {
            "texts": [samples[number] for number in sorted(samples)],
            "metrics": {key: value for key, value in results if "," in key and "_stderr" not in key},
        }
    return written


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text())
    Path(asked["out"]).write_text(json.dumps({"vllm": with_vllm, "lm-eval": with_lm_eval}[sys.argv[1]](asked)))
