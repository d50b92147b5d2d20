"""What a model was asked is decoded from the tokens of a run's requests, so that it is what the engine was given."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from lambdasweep.tasks.tokens import Tokenizer

FIELDS = (
    pa.field("question", pa.string()),  # what stands before the choices, with the shots
    pa.field("choices", pa.list_(pa.string())),
    pa.field("tokens", pa.list_(pa.list_(pa.string()))),  # the tokens of each choice, one by one
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The texts of one document."""

    question: str
    choices: list[str]
    tokens: list[list[str]]


def decode(requests: pa.Table, tokenizer: Tokenizer) -> Mapping[str, Decoded]:
    """Return the texts of the documents of one task, by `doc_id`.

    Args:
        requests: all rows of the task, with `doc_id`, `token_ids` and `continuation_start` of schemas.REQUESTS.
        tokenizer: the one that the requests were made with.
    """
    found: dict[str, Decoded] = {}
    columns = (requests[name].to_pylist() for name in ("doc_id", "token_ids", "continuation_start"))
    for doc_id, ids, start in zip(*columns, strict=True):
        if doc_id not in found:
            found[doc_id] = Decoded(tokenizer.decode(ids[:start]), [], [])
        found[doc_id].choices.append(tokenizer.decode(ids[start:]))
        found[doc_id].tokens.append([tokenizer.decode([one]) for one in ids[start:]])
    return found


def with_texts(examples: pa.Table, texts: Mapping[str, Decoded]) -> pa.Table:
    """Return a table that has a column `doc_id` with the columns FIELDS behind its own."""
    ids = examples["doc_id"].to_pylist()
    for field in FIELDS:
        values = [getattr(texts[one], field.name) for one in ids]
        examples = examples.append_column(field, pa.array(values, field.type))
    return examples
