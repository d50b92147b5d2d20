"""Tasks: JSONL files and lm-eval's tasks → the λ-free requests table. Knows tokenizers, but neither engines nor models.

documents.py    a JSONL file → checked documents, or every problem it has
formats.py      a document → the text that is conditioned on and the texts that are scored
chat.py         a checkpoint's chat template, and messages → the text that it makes of them
tokens.py       texts → tokens: pairs of context and continuation, and windows over long texts
requests.py     a task's texts → the requests table, and its cut into shards
prompts.py      a JSONL file → prompts to be sampled from, and their cut into shards
lm_eval_tasks/  the same of lm-eval's tasks, and lm-eval's own metrics of their scores
"""

from lambdasweep.tasks.chat import ChatTemplate
from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.lm_eval_tasks.load import HarnessSpec
from lambdasweep.tasks.requests import BuiltTask, build_requests, content_sha256, requests_of, shards
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

__all__ = [
    "BuiltTask",
    "ChatTemplate",
    "HarnessSpec",
    "TaskSpec",
    "Tokenizer",
    "build_requests",
    "content_sha256",
    "load_tokenizer",
    "requests_of",
    "shards",
]
