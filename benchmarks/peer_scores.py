"""This script scores (context, continuation) texts with one of lm-eval's models, in the environment that peers.py makes.

    python peer_scores.py JOB.json

The job is {"model": "vllm" or "hf", "arguments": {…}, "workloads": {name: [[context, continuation], …]}, "out": file}. For
each workload it writes the seconds of scoring (the model is loaded before) and [log-likelihood, greedy] of each text.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model


def main(job: dict[str, Any]) -> None:
    model = get_model(job["model"])(**job["arguments"])
    found: dict[str, Any] = {}
    for name, texts in job["workloads"].items():
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=index)
            for index, (context, continuation) in enumerate(texts)
        ]
        began = time.perf_counter()
        scores = model.loglikelihood(requests, disable_tqdm=True)
        found[name] = {
            "seconds": time.perf_counter() - began,
            "scores": [[score, bool(greedy)] for score, greedy in scores],
        }
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
