"""Tasks: JSONL files → the λ-free requests table. Knows tokenizers, but neither engines nor models.

documents.py    a JSONL file → checked documents, or every problem it has
formats.py      a document → the text that is conditioned on and the texts that are scored
tokens.py       texts → tokens: pairs of context and continuation, and windows over long texts
requests.py     a task's texts → the requests table, and its cut into shards
"""

from lambdasweep.tasks.documents import TaskSpec
from lambdasweep.tasks.requests import BuiltTask, build_requests, content_sha256, shards
from lambdasweep.tasks.tokens import Tokenizer, load_tokenizer

__all__ = ["BuiltTask", "TaskSpec", "Tokenizer", "build_requests", "content_sha256", "load_tokenizer", "shards"]
