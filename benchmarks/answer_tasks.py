"""This writes lm-eval tasks whose answers the model writes, over local rows: like gsm8k, like triviaqa and like ifeval.

Settings are those of lm-eval 0.4.13's own YAML files, but for the tokens an output has at most.
"""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

GSM8K, TRIVIAQA, INSTRUCTIONS = "gsm8k_local", "triviaqa_local", "instructions_local"
ENDS = ("Question:", "</s>", "<|im_end|>")


def read_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]


def write_gsm8k(
    folder: Path,
    rows: list[dict[str, Any]],
    shots: int,
    new_tokens: int,
    until: Sequence[str],
    sampler: str = "default",
) -> Path:
    """Write a task over rows with `context`, `chain_of_thought` and `answer`; the first are the examples.

    Their order differs from document to document, unless the sampler is `first_n`, as that of lm-eval's gsm8k_cot is.
    """
    known = [{"question": row["context"], "answer": f"{row['chain_of_thought']} #### {row['answer']}"} for row in rows]
    number = "(-?[$0-9.,]{2,})|(-?[0-9]+)"
    return _write(
        folder,
        GSM8K,
        {
            "fewshot_split": "train",
            "num_fewshot": shots,
            "fewshot_config": {"sampler": sampler},
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "metric_list": [
                {
                    "metric": "exact_match",
                    "aggregation": "mean",
                    "higher_is_better": True,
                    "ignore_case": True,
                    "ignore_punctuation": False,
                    "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
                }
            ],
            "generation_kwargs": _greedy(until, new_tokens),
            "filter_list": [
                _filter("strict-match", {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}),
                _filter("flexible-extract", {"function": "regex", "group_select": -1, "regex_pattern": number}),
            ],
        },
        known[shots:],
        known[:shots],
    )


def write_triviaqa(folder: Path, rows: list[dict[str, Any]], new_tokens: int) -> Path:
    """Write a task over rows with `context` and `aliases`."""
    return _write(
        folder,
        TRIVIAQA,
        {
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{aliases}}",
            "metric_list": [
                {
                    "metric": "exact_match",
                    "aggregation": "mean",
                    "higher_is_better": True,
                    "ignore_case": True,
                    "ignore_punctuation": True,
                }
            ],
            "generation_kwargs": _greedy(("\n", ".", ","), new_tokens),
            "filter_list": [_filter("remove_whitespace", {"function": "remove_whitespace"})],
        },
        [{"context": row["context"], "aliases": row["aliases"]} for row in rows],
    )


def write_instructions(folder: Path, count: int, new_tokens: int) -> Path:
    """Write a task whose texts are judged by instructions that can be verified, two a prompt."""
    shutil.copy(Path(__file__).with_name("instruction_checks.py"), folder)
    pairs = list(itertools.combinations(_ASKED.values(), 2))
    rows = []
    for number in range(count):
        topic, ((first, check), (second, other)) = _TOPICS[number % len(_TOPICS)], pairs[number % len(pairs)]
        rows.append({"prompt": f"Write about {topic}. {first} {second}", "instructions": [check, other]})
    path = _write(
        folder,
        INSTRUCTIONS,
        {
            "doc_to_text": "prompt",
            "doc_to_target": 0,
            "num_fewshot": 0,
            "generation_kwargs": _greedy((), new_tokens),
        },
        rows,
    )
    metrics = "".join(
        f"  - metric: {level}_level_{kind}_acc\n    aggregation: {how}\n    higher_is_better: true\n"
        for level, how in (("prompt", "mean"), ("inst", "!function instruction_checks.share_of_instructions"))
        for kind in ("strict", "loose")
    )
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(f"process_results: !function instruction_checks.process_results\nmetric_list:\n{metrics}")
    return path


_TOPICS = (
    "the sea", "bread", "a small dog", "winter", "trains", "the moon", "a garden", "paper", "old maps", "music", "tea",
)  # fmt: skip
_ASKED: dict[str, tuple[str, list[Any]]] = {
    "commas": ("Do not use any commas.", ["no commas", None]),
    "case": ("Use lower case letters only.", ["lower case", None]),
    "short": ("Use at most 25 words.", ["at most words", 25]),
    "long": ("Write at least three sentences.", ["at least sentences", 3]),
    "has": ("Use the word water.", ["has", "water"]),
    "start": ("Begin with the word Once.", ["starts with", "once"]),
    "end": ("End with the words The end.", ["ends with", "the end."]),
    "quotes": ("Put all of your answer in double quotation marks.", ["quoted", None]),
}


def _greedy(until: Sequence[str], new_tokens: int) -> dict[str, Any]:
    return {"until": list(until), "do_sample": False, "temperature": 0.0, "max_gen_toks": new_tokens}


def _filter(name: str, first: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "filter": [first, {"function": "take_first"}]}


def _write(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    shots: Sequence[dict[str, Any]] = (),
) -> Path:
    files = {}
    for split, some in (("test", rows), ("train", shots)):
        if some:
            files[split] = str(folder / f"{name}-{split}.json")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "output_type": "generate_until",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(common | settings), encoding="utf-8")
    return path
