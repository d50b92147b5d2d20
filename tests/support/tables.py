"""This writes small run directories, table by table."""

import pyarrow as pa

from contract import schemas
from contract.commit import commit_json, commit_table
from contract.location import read_table

SWEEP = {
    "pair": {"base": {"fingerprint": "b0", "source": "/here"}, "aligned": {"fingerprint": "a1", "source": "/here"}},
    "line": {"method": "linear", "lam_map": "", "vocab": "strict", "rows_from_aligned": {}, "ends_at_aligned": True},
    "engine": {"dtype": "float32"},
    "versions": {"vllm": "0.32.0"},
}


def add_task(run, task, documents, lambdas, gold=None, sizes=None, continuations=None):
    """Write one task. `documents` has the number of choices of each document, `sizes` the bytes of each request, and
    `continuations` the token ids of each that are scored."""
    requests = [(f"doc{d}", choice) for d, count in enumerate(documents) for choice in range(count)]
    gold = gold or [0] * len(documents)
    is_gold = [choice == gold[d] for d, count in enumerate(documents) for choice in range(count)]
    columns = {
        "request_id": list(range(len(requests))),
        "doc_id": [name for name, _ in requests],
        "choice": [choice for _, choice in requests],
        "token_ids": [[1, 2, *ids] for ids in continuations or [[5]] * len(requests)],
        "continuation_start": [2] * len(requests),
        "continuation_bytes": sizes or [1] * len(requests),
        "is_gold": is_gold,
    }
    commit_table(run.requests(task), pa.table(columns, schema=schemas.REQUESTS))
    tasks = run.plan()["tasks"] if run.plan_json.is_file() else {}
    tasks[task] = {"shards": [[0, len(requests)]], "lambdas": list(lambdas)}
    commit_json(run.plan_json, {"tasks": tasks})
    commit_json(run.sweep_json, SWEEP)


def lengthen(run, task, scores):
    """Give the requests of a choice task continuations as long as their scores."""
    requests = read_table(run.requests(task))
    if len(set(requests["doc_id"].to_pylist())) == len(requests):
        return  # in a continuation task the tests say what the tokens are
    ids = requests["token_ids"].to_pylist()
    for request, row in scores.items():
        if 0 <= request < len(ids) and row:
            ids[request] = [1, 2, *[5] * len(row)]
    column = requests.schema.get_field_index("token_ids")
    field = requests.schema.field(column)
    commit_table(run.requests(task), requests.set_column(column, field, pa.array(ids, field.type)))


def add_scores(run, task, lam, scores, shard=0, ranks=None, top1=None, inside=None):
    """Commit one shard: `scores`, `ranks` and `top1` (ids) are {request_id: one per token}. The rows say λ `inside`."""
    lengthen(run, task, scores)
    columns = {
        "request_id": list(scores),
        **schemas.place_columns(inside or lam, len(scores)),
        "logprobs": list(scores.values()),
        "ranks": [(ranks or {}).get(request, [None] * len(row)) for request, row in scores.items()],
        "top1_ids": [(top1 or {}).get(request, [None] * len(row)) for request, row in scores.items()],
        "top1_logprobs": [[0.0] * len(row) for row in scores.values()],
    }
    commit_table(run.unit("tokens", task, lam, shard), pa.table(columns, schema=schemas.TOKENS))


def add_quarantine(run, task, lam, requests, shard=0):
    table = pa.table({"request_id": requests, "reason": ["too long"] * len(requests)}, schema=schemas.QUARANTINE)
    commit_table(run.unit("quarantine", task, lam, shard), table)


def add_prompts(run, task, prompts, lambdas, samples=2):
    """Write one generate task of some prompts."""
    columns = {
        "request_id": list(range(prompts)),
        "doc_id": [f"prompt{p}" for p in range(prompts)],
        "prompt": [f"Say {p}" for p in range(prompts)],
        "token_ids": [[1, 2]] * prompts,
    }
    commit_table(run.requests(task), pa.table(columns, schema=schemas.PROMPTS))
    tasks = run.plan()["tasks"] if run.plan_json.is_file() else {}
    sampling = {"samples": samples, "temperature": 1.0, "max_tokens": 8, "stop_token_ids": [0]}
    shards = {"shards": [[0, prompts]], "costs": [prompts], "documents": prompts, "lambdas": list(lambdas)}
    tasks[task] = {"scored_as": "samples", **sampling, **shards}
    commit_json(run.plan_json, {"tasks": tasks})
    commit_json(run.sweep_json, SWEEP)


def add_samples(run, task, lam, texts, shard=0):
    """Commit one shard. `texts` are {prompt: its samples}."""
    rows = [(prompt, sample, text) for prompt, some in texts.items() for sample, text in enumerate(some)]
    columns = {
        "request_id": [prompt for prompt, _, _ in rows],
        "sample": [sample for _, sample, _ in rows],
        **schemas.place_columns(lam, len(rows)),
        "seed": [7] * len(rows),
        "token_ids": [[5]] * len(rows),
        "text": [text for _, _, text in rows],
        "finish_reason": ["length"] * len(rows),
        **{name: [[-1.0]] * len(rows) for name in ("logprobs", "top1_logprobs", "entropies")},
        "ranks": [[1]] * len(rows),
        "top1_ids": [[5]] * len(rows),
    }
    commit_table(
        run.unit("generations", task, lam, shard),
        pa.table(columns, schema=schemas.GENERATIONS),
    )


def add_written(run, task, documents, lambdas, samples):
    """Write one task of some documents whose answers are written, with so many outputs of each."""
    add_prompts(run, task, documents, lambdas, samples)
    plan = run.plan()
    plan["tasks"][task] |= {
        "scored_as": "answers",
        "format": "generate",
        "shots": 0,
        "top_p": 1.0,
        "top_k": 0,
        "until": ["\n"],
        "normaliser": "squad",
        "metric": "exact_match",
    }
    commit_json(run.plan_json, plan)


def add_outputs(run, task, lam, outputs, graded=True, thinking=None, ends=None, said=None):
    """Commit the outputs of a λ: of each document its (answer, is right, logprobs, place of the answer, is cut).

    `said` are the log-probabilities [outputs, 2] that the model gave to an answer being right and wrong.
    """
    rows = [(document, sample, *one) for document, some in outputs.items() for sample, one in enumerate(some)]
    request = [row[0] for row in rows]
    common = {"request_id": request, "sample": [row[1] for row in rows], **schemas.place_columns(lam, len(rows))}
    logprobs = [row[4] for row in rows]
    generations = {
        **common,
        "seed": [7] * len(rows),
        "token_ids": [[5] * len(one) for one in logprobs],
        "text": [row[2] for row in rows],
        "finish_reason": ["length" if row[6] else "stop" for row in rows],
        "logprobs": logprobs,
        "ranks": [[1] * len(one) for one in logprobs],
        "top1_ids": [[5] * len(one) for one in logprobs],
        "top1_logprobs": logprobs,
        "entropies": [[2.0 * -value for value in one] for one in logprobs],
    }
    table = pa.table(generations, schema=schemas.GENERATIONS)
    for number, field in enumerate(schemas.P_TRUE if said is not None else ()):
        table = table.append_column(field, pa.array([row[number] for row in said], field.type))
    commit_table(run.unit("generations", task, lam, 0), table)
    if not graded:
        return
    grades = {
        **common,
        "answer": [row[2] for row in rows],
        "answer_class": [row[2] for row in rows],
        "answer_start": [row[5] for row in rows],
        "thinking_tokens": [thinking] * len(rows),
        "answer_end": [ends] * len(rows),
        "correct": [row[3] for row in rows],
        "metrics": [[("exact_match", float(row[3]))] for row in rows],
    }
    commit_table(run.unit("graded", task, lam, 0), pa.table(grades, schema=schemas.GRADED))
