"""Chat templates give the tokens that lm-eval's own evaluator asks for with `apply_chat_template`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from contract.errors import PairError, TaskError
from lambdasweep.tasks.chat import ChatTemplate, read_template
from lambdasweep.tasks.documents import TaskSpec, read_documents
from lambdasweep.tasks.formats import draw_shots
from lambdasweep.tasks.lm_eval_tasks.load import load_lm_eval
from lambdasweep.tasks.lm_eval_tasks.requests import build_instances
from lambdasweep.tasks.lm_eval_tasks.spec import LmEvalSpec
from lambdasweep.tasks.requests import build_requests
from lambdasweep.tasks.tokens import load_tokenizer
from tests.support.checkpoints import write_tokenizer
from tests.support.lm_eval_inputs import cache_of_datasets

WINDOW = 512
TURNS = "{% for turn in messages %}<{{ turn.role }}>\n{{ turn.content | trim }}</s>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>\n{% endif %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
TEMPLATES = {
    "bos": "{{ bos_token }}" + TURNS + PROMPT,
    "no bos": TURNS + PROMPT,
    "no system": "{{ bos_token }}" + REFUSES + TURNS + PROMPT,
    "space": TURNS + "{% if add_generation_prompt %}<assistant> {% else %}<open>{% endif %}",
}
CHOICES = [
    {"query": "Which is a metal? ", "choices": ["iron", "oxygen gas", "hé"], "gold": 0},
    {"query": "Which is wet", "choices": ["sand", "water", "the salt"], "gold": 1},
    {"query": "Who?", "choices": ["him", "her", "them all"], "gold": 1},
    {"query": "The sea and the", "choices": ["in", "on", "an"], "gold": 2},
    {"query": "A\n\nB", "choices": ["re", "es", "te"], "gold": 2},
]
CONTINUATIONS = [
    {"context": "The capital of France is", "continuation": "Paris"},
    {"context": "Trailing ", "continuation": "space"},
    {"context": "Over the", "continuation": "sea and on"},
    {"context": "And then", "continuation": "he went"},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
}
LETTERS = {
    **CHOICE,
    "doc_to_text": "{{query.rstrip()}}{% for one in choices %}\n{{'ABC'[loop.index0]}}. {{one}}{% endfor %}\nAnswer:",
    "doc_to_choice": ["A", "B", "C"],
}
YAML: dict[str, dict[str, Any]] = {
    "plain": CHOICE,
    "described": {**CHOICE, "description": "Answer these.", "fewshot_delimiter": "\n--\n"},
    "prefixed": {**CHOICE, "gen_prefix": "It is"},
    "spaced": {**CHOICE, "gen_prefix": "It is "},
    "informed": {
        **CHOICE,
        "metric_list": [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}],
    },
    "target": {"output_type": "loglikelihood", "doc_to_text": "{{query}}", "doc_to_target": "{{' ' + choices[gold]}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{query}}"},
}
FORMATS: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any]]] = {
    "cloze": (CHOICES, "cloze", {**CHOICE, "doc_to_text": "{{query.rstrip()}}\nAnswer:"}),
    "letters": (CHOICES, "letters", LETTERS),
    "continuation": (
        CONTINUATIONS[:1] + CONTINUATIONS[2:],  # lm-eval puts its delimiter behind any context of an example
        "cloze",
        {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{continuation}}"},
    ),
}


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    """Write a template, and a tokenizer that puts BOS in front of texts that do not begin with it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TEMPLATES[request.param]
    tokenizer.save_pretrained(directory)
    return ChatTemplate(read_template(directory), load_tokenizer(directory))


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    pytest.importorskip("datasets")
    with cache_of_datasets(tmp_path_factory.mktemp("datasets")):
        yield


def write_task(root: Path, settings: dict[str, Any], rows: list[dict[str, Any]], shots: list[dict[str, Any]]) -> Path:
    """Write the YAML file of a task, which shows the first of `shots` as examples."""
    for name, some in (("rows", rows), ("shots", shots)):
        (root / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in some))
    common = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "rows.json"), "train": str(root / "shots.json")}},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "metadata": {"version": 1.0},
    }
    path = root / "mine.yaml"
    path.write_text(json.dumps(common | settings))  # JSON is YAML, and is written in no time
    return path


def asked_by_lm_eval(
    path: Path, shots: int, chat: ChatTemplate, turns: bool = False, system_prompt: str | None = None
) -> list[tuple[list[int], int]]:
    """Return the tokens, and where the continuation starts, of everything that lm-eval's evaluator asks its `hf` model."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lambdasweep[lm-eval]")
    from lm_eval import evaluator
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Recorder(TemplateLM):
        tokenizer = chat.tokenizer
        tokenizer_name = "mine"
        add_bos_token = custom_prefix_token_id = None
        chat_template_args: dict[str, Any] = {}  # noqa: RUF012
        prefix_token_id = HFLM.prefix_token_id
        eot_token_id = 1
        tok_encode = HFLM.tok_encode
        apply_chat_template = HFLM.apply_chat_template

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[list[int], int]] = []

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.asked += [(context + continuation, len(context)) for _, context, continuation in requests]
            return [(-1.0, False) for _ in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            for request in requests:
                windows = get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, WINDOW - 2, 1
                )
                self._loglikelihood_tokens([(None, *make_disjoint_window(window)) for window in windows])
            return [-1.0] * len(requests)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    model = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        # lm-eval asks pip and the compiler, which takes seconds.
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        patch.setattr(evaluator, "get_git_commit_hash", lambda: None)
        evaluator.simple_evaluate(
            model=model,
            tasks=["mine"],
            num_fewshot=shots,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(path.parent), include_defaults=False),
            apply_chat_template=True,
            fewshot_as_multiturn=turns,
            system_instruction=system_prompt,
        )
    assert model.asked
    return sorted(model.asked)


def asked_here(parts: Any) -> list[tuple[list[int], int]]:
    rows = [row for part in parts for row in part.table.to_pylist()]
    return sorted((row["token_ids"], row["continuation_start"]) for row in rows)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", YAML)
def test_tokens_of_a_task_of_lm_eval(name: str, shots: int, chat: ChatTemplate, tmp_path: Path) -> None:
    path = write_task(tmp_path, YAML[name], CHOICES[2:], CHOICES[:2])
    harness = load_lm_eval(LmEvalSpec(str(path), shots=shots, template="chat"), chat)
    built = build_instances(harness.tasks[0], chat.tokenizer, WINDOW)
    assert asked_here(built.parts.values()) == asked_by_lm_eval(path, shots, chat)
    sha256 = None if name == "rolling" else chat.sha256
    assert {part.chat_template_sha256 for part in built.parts.values()} == {sha256}
    told = (name == "described" and not chat.takes_system) or name == "rolling"
    assert any("without a chat template" in text or "no system message" in text for text in harness.warnings) == told


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_tokens_of_a_task_file(name: str, shots: int, chat: ChatTemplate, tmp_path: Path) -> None:
    rows, format, settings = FORMATS[name]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TaskSpec("mine", file, format=format, shots=shots, template="chat")
    chosen, rest = (
        [rows[one.line - 1] for one in some] for some in draw_shots(read_documents(spec).documents, shots, None, 0)
    )
    path = write_task(tmp_path, settings, rest, chosen or rows)
    built = build_requests(spec, chat.tokenizer, chat)
    assert asked_here([built]) == asked_by_lm_eval(path, shots, chat)
    assert built.chat_template_sha256 == chat.sha256
    plain = build_requests(replace(spec, template="none"), chat.tokenizer, chat)
    assert plain.chat_template_sha256 is None
    assert plain.requests_sha256 != built.requests_sha256
    assert plain.table["continuation_bytes"] == built.table["continuation_bytes"]


SYSTEM = "You are brief.  "


@pytest.mark.parametrize(("shots", "turns"), [(0, False), (2, True)])
@pytest.mark.parametrize("name", ["plain", "described", "spaced"])
def test_system_prompts_and_examples_as_turns_of_lm_eval(
    name: str, shots: int, turns: bool, chat: ChatTemplate, tmp_path: Path
) -> None:
    path = write_task(tmp_path, YAML[name], CHOICES[2:], CHOICES[:2])
    system_prompt = SYSTEM if chat.takes_system else None
    template = "chat-turns" if turns else "chat"
    spec = LmEvalSpec(str(path), shots=shots, template=template, system_prompt=system_prompt)
    (task,) = load_lm_eval(spec, chat).tasks
    built = build_instances(task, chat.tokenizer, WINDOW)
    assert asked_here(built.parts.values()) == asked_by_lm_eval(path, shots, chat, turns, system_prompt)
    assert ("; examples as turns" in built.parts["mine"].template) == turns


@pytest.mark.parametrize("name", FORMATS)
def test_system_prompts_and_examples_as_turns_of_a_task_file(name: str, chat: ChatTemplate, tmp_path: Path) -> None:
    rows, format, settings = FORMATS[name]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    system_prompt = SYSTEM if chat.takes_system else None
    spec = TaskSpec("mine", file, format=format, shots=2, template="chat-turns", system_prompt=system_prompt)
    shots, rest = (
        [rows[one.line - 1] for one in some] for some in draw_shots(read_documents(spec).documents, 2, None, 0)
    )
    path = write_task(tmp_path, settings, rest, shots)
    built = build_requests(spec, chat.tokenizer, chat)
    assert asked_here([built]) == asked_by_lm_eval(path, 2, chat, True, system_prompt)
    assert "; examples as turns" in built.template
    single = build_requests(replace(spec, template="chat"), chat.tokenizer, chat)
    assert single.requests_sha256 != built.requests_sha256


def test_a_system_prompt_is_never_left_out_in_silence(chat: ChatTemplate, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(CHOICES[0]))
    with pytest.raises(TaskError) as refused:
        read_documents(TaskSpec("mine", file, system_prompt="Be brief."))
    assert refused.value.problems == (
        "there is a system prompt and no chat template that it would go into: give --template chat, too",
    )
    path = write_task(tmp_path, CHOICE, CHOICES[2:], CHOICES[:2])
    with pytest.raises(TaskError, match="no chat template that it would go into"):
        load_lm_eval(LmEvalSpec(str(path), system_prompt="Be brief."))
    if not chat.takes_system:
        with pytest.raises(TaskError, match="takes no system message: leave --system-prompt out"):
            build_requests(TaskSpec("mine", file, template="chat", system_prompt="Be brief."), chat.tokenizer, chat)
        with pytest.raises(TaskError, match="takes no system message: leave --system-prompt out"):
            load_lm_eval(LmEvalSpec(str(path), template="chat", system_prompt="Be brief."), chat)


SKIPS = "{% for turn in messages if turn.role != 'system' %}<{{ turn.role }}>\n{{ turn.content }}{% endfor %}" + PROMPT
SHORT = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}" + TURNS + PROMPT
SWALLOWS = "{% if messages | length > 2 %}{% set messages = messages[1:] %}{% endif %}" + TURNS + PROMPT


def test_a_template_that_skips_a_system_prompt_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    skips, shows = ChatTemplate(SKIPS, tokenizer), ChatTemplate(TURNS + PROMPT, tokenizer)
    says = ["the aligned model's chat template takes no system message: leave --system-prompt out"]
    assert (skips.takes_system, skips.check_system("Be brief."), skips.check_system(None)) == (False, says, [])
    assert (shows.takes_system, shows.check_system(" Be brief.\n")) == (True, [])
    fixed = ChatTemplate("Be brief." + SKIPS, tokenizer)  # this template has the text without being told
    assert fixed.check_system("Be brief.") == says
    first = ChatTemplate(TURNS.replace("trim", "trim | truncate(50, true, '')") + PROMPT, tokenizer)
    assert first.check_system("Be brief. " * 9) == [
        "the aligned model's chat template does not show this system prompt: give another --system-prompt"
    ]


def test_a_system_prompt_that_was_asked_for_stays_in_longer_talks(tmp_path: Path) -> None:
    """Write a template that takes one turn behind a system message, and refuses or forgets it in front of more."""
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in CHOICES[:3]))
    path = write_task(tmp_path, CHOICE, CHOICES[2:], CHOICES[:2])
    asked: dict[str, Any] = {"template": "chat-turns", "system_prompt": "Be brief.", "shots": 1}
    for source, says in ((SHORT, "too long"), (SWALLOWS, "it leaves the system prompt out")):
        chat = ChatTemplate(source, tokenizer)
        assert chat.check_system("Be brief.") == []
        with pytest.raises(TaskError, match=says):
            build_requests(TaskSpec("mine", file, **asked), tokenizer, chat)
        with pytest.raises(TaskError, match=says):
            load_lm_eval(LmEvalSpec(str(path), **asked), chat)


def test_a_template_that_does_not_render(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(CHOICES[0]))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(TaskError, match="does not render") as refused:
        build_requests(
            TaskSpec("mine", file, template="chat"),
            tokenizer,
            ChatTemplate("{{ raise_exception('odd turns') }}", tokenizer),
        )
    assert list(refused.value.problems) == ["the chat template does not render it (TemplateError: odd turns)"]


def test_where_a_template_is_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    for contents in (None, "{}", '{"chat_template": null}', '{"chat_template": [{"name": "rag", "template": "a"}]}'):
        if contents:
            config.write_text(contents)
        with pytest.raises(PairError, match="has no chat template"):
            read_template(tmp_path)
    config.write_text("{")
    with pytest.raises(PairError, match="cannot be read"):
        read_template(tmp_path)
    config.write_text('{"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]}')
    assert read_template(tmp_path) == "b"
    config.write_text('{"chat_template": "c"}')
    assert read_template(tmp_path) == "c"
    (tmp_path / "chat_template.jinja").write_text("d")
    assert read_template(tmp_path) == "d"
