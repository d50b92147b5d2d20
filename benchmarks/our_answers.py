"""This script writes answers with lambdasweep's engine, as a replica does, and with the same engine through vLLM alone.

    python our_answers.py JOB.json

The job is {"settings", "cores", "base", "aligned", "lam", "task": a YAML file, "limit", "out"}. The script writes the
seconds of a unit with its tokens' scores and those of the same requests through `vllm.LLM.generate` on the same engine,
in turn, three times; the tokens that they made; and the prompts' tokens.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from serve.settings import EngineSettings, Sampling

TRIES = 3


def main(job: dict[str, Any]) -> None:
    from serve.engine import Engine
    from serve.start import process_environment

    settings = EngineSettings.from_json(job["settings"])
    os.environ.update(process_environment(settings, job["cores"]))
    from vllm import SamplingParams

    from lambdasweep.tasks.lm_eval_tasks.load import load_lm_eval
    from lambdasweep.tasks.lm_eval_tasks.requests import build_answers
    from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
    from lambdasweep.tasks.prompts import BuiltPrompts
    from lambdasweep.tasks.tokens import load_tokenizer
    from serve.sampling import sample_unit

    tokenizer = load_tokenizer(job["base"])
    (task,) = load_lm_eval(LmEvalSpec(job["task"], limit=job["limit"])).tasks
    built, asked = build_answers(task, tokenizer, ())
    (part,) = built.parts.values()
    assert isinstance(part, BuiltPrompts)
    # Only the greatest number of tokens ends an output, so that both sides make as many.
    sampling = Sampling(1, 0.0, asked.max_tokens, (), until=())
    engine = Engine(Path(job["base"]), Path(job["aligned"]), settings)
    engine.switch(job["lam"])
    prompts = [{"prompt_token_ids": ids} for ids in part.table["token_ids"].to_pylist()]
    plain = SamplingParams(temperature=0.0, max_tokens=asked.max_tokens, ignore_eos=True, detokenize=False, seed=0)
    found: dict[str, Any] = {"with_s": [], "without_s": []}
    for _ in range(TRIES):
        began = time.perf_counter()
        unit = sample_unit(engine, part.table, job["lam"], sampling, lambda ids: "")
        found["with_s"].append(time.perf_counter() - began)
        engine.clear_prefix_cache()
        began = time.perf_counter()
        outputs = engine._llm.generate(prompts, plain, use_tqdm=False)  # no request is watched, so no token is scored
        found["without_s"].append(time.perf_counter() - began)
        found["tokens"] = unit.new_tokens
        assert sum(len(output.outputs[0].token_ids) for output in outputs) == unit.new_tokens
    found["prompts"] = [prompt["prompt_token_ids"] for prompt in prompts]
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
