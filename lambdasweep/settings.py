"""This module holds the settings of tasks, samples, a pair and its engines. Each is one annotated field, from which its
flag, its key in a settings file, its help and its check follow. It imports nothing heavy.

`run` and `plan` take all of them, `score` those of `PairSettings`, and `export` and `serve` those that say which pair it is.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from contract.points import by_name, parent_names

# The groups that `--help` shows flags in.
PAIR, LINE, GRID, TASKS, SAMPLING = "Pair", "Line between the two", "Grid", "Tasks", "Sampling"
RUN, ENGINE, CLUSTER = "Run", "Engine", "Cluster"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said of a field."""

    help: str
    panel: str = ENGINE
    metavar: str | None = None
    least: int | None = None  # a number may not be less
    most: int | None = None  # a number may not be more
    one_of: Callable[[Mapping[str, Any]], Collection[str]] | None = None
    """Returns what the field may be, from all values that were given."""
    default: str | None = None  # says in words what holds where the field is None
    flag: bool = True  # tells whether there is a flag; without one, a settings file alone has the field
    auto: bool = False  # tells whether a number may also be `auto`, which is the same as not to give it


def _formats(_: Mapping[str, Any]) -> Collection[str]:
    from lambdasweep.tasks.format_names import FORMATS

    return FORMATS


def _normalisers(_: Mapping[str, Any]) -> Collection[str]:
    from lambdasweep.tasks.normalise import NORMALISERS

    return tuple(NORMALISERS)


_CHATS = ("chat", "chat-turns")


def _templates(_: Mapping[str, Any]) -> Collection[str]:
    return "none", *_CHATS


def _methods(_: Mapping[str, Any]) -> Collection[str]:
    from merge.methods import METHODS

    return METHODS


def _vocabularies(_: Mapping[str, Any]) -> Collection[str]:
    from merge.line import VOCABULARIES

    return VOCABULARIES


def _tiers(_: Mapping[str, Any]) -> Collection[str]:
    from serve.switch.tiers import CHOICES

    return CHOICES


def _dtypes(_: Mapping[str, Any]) -> Collection[str]:
    return "auto", "float32", "bfloat16", "float16"


def _parents(given: Mapping[str, Any]) -> Collection[str]:
    return parent_names(by_name(given.get("aligned", "")))


_LIMIT = Setting("Take only the first so many documents or prompts of each.", TASKS, "N", least=1, default="all")
_TEMPERATURE = Setting(
    "What logits are divided by; 0 is greedy.", SAMPLING, default="1; of a task what it says, else 0"
)
_MAX_TOKENS = Setting(
    "Tokens that a sample or an answer is cut at.",
    SAMPLING,
    "N",
    least=1,
    default="64; of a task what it says, else 256",
)
_TEMPLATE = Setting(
    "chat: contexts go through the aligned model's chat template, at every λ; chat-turns: with shots as turns of their own.",
    TASKS,
    one_of=_templates,
)
_SYSTEM_PROMPT = Setting("What the chat template's system message says.", TASKS, "TEXT", default="no such message")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What is asked of a task that is scored."""

    format: Annotated[
        str,
        Setting(
            "What of a choice is scored: its text (cloze), or A, B, C… (letters); generate: the model writes its answer.",
            TASKS,
            one_of=_formats,
        ),
    ] = "cloze"
    shots: Annotated[
        int, Setting("Solved examples in front of every document; they are not evaluated.", TASKS, "N", least=0)
    ] = 0
    seed: Annotated[int, Setting("The seed that the examples are drawn with.", TASKS, flag=False)] = 0
    limit: Annotated[int | None, _LIMIT] = None
    """How many of the remaining rows are evaluated, from the first on; None: all of them."""
    template: Annotated[str, _TEMPLATE] = "none"
    """chat: everything up to the text that is scored goes into a user turn of the aligned model's chat template; chat-turns:
    each solved example is a user's turn and an assistant's turn before it (lm-eval's `fewshot_as_multiturn`)."""
    system_prompt: Annotated[str | None, _SYSTEM_PROMPT] = None
    repeats: Annotated[
        int | None,
        Setting(
            "Answers that the model writes to each document.",
            TASKS,
            "N",
            least=1,
            most=2**15 - 1,  # int16 in the tables
            default="what the task says, else 1",
        ),
    ] = None
    temperature: Annotated[float | None, _TEMPERATURE] = None
    """None: what the task says, else 0, which is greedy: all answers to a document are then the same, and one is made."""
    max_tokens: Annotated[int | None, _MAX_TOKENS] = None
    until: Annotated[
        str | None,
        Setting(
            "Text that ends an answer that the model writes; \\n is a new line.",
            TASKS,
            "TEXT",
            default="what the task says; of the format generate an empty line where there are shots",
        ),
    ] = None
    normaliser: Annotated[
        str | None,
        Setting(
            "What says which written answers are the same.",
            TASKS,
            one_of=_normalisers,
            default="auto",
        ),
    ] = None

    pmi: Annotated[
        bool,
        Setting(
            "Score each choice without its document, too, so that `pmi` is a confidence: what the document adds to it.",
            TASKS,
        ),
    ] = False
    equivalence: Annotated[
        str | None,
        Setting(
            "A model on disk of natural language inference, or of sentence embeddings with a least cosine, which says which "
            "written answers mean the same.",
            TASKS,
            "DIRECTORY[@COSINE]",
            default="those that the normaliser makes the same",
        ),
    ] = None
    think_end_token: Annotated[
        str | None,
        Setting(
            "Text, or id of the token, that ends the thinking before an answer.",
            TASKS,
            "TEXT",
            default="all of an output is the answer",
        ),
    ] = None
    p_true: Annotated[
        str | None,
        Setting(
            "Question whether a written answer is right: kadavath, or a text with A for yes and B for no.",
            TASKS,
            "TEXT",
            default="the model is not asked",
        ),
    ] = None
    verbalised: Annotated[
        str | None,
        Setting(
            "Regular expression that finds how sure a written answer says it is, in its group: (\\d+) %.",
            TASKS,
            "REGEX",
            default="nothing is looked for",
        ),
    ] = None
    verbalised_suffix: Annotated[
        str | None,
        Setting("Text behind each prompt that asks for that number; \\n is a new line.", TASKS, "TEXT", default="none"),
    ] = None

    @property
    def chat(self) -> bool:
        return self.template in _CHATS

    @property
    def as_turns(self) -> bool:
        return self.template == "chat-turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """What is asked of a task that is sampled."""

    samples: Annotated[
        int, Setting("Samples of each prompt.", SAMPLING, "N", least=1, most=2**15 - 1)  # int16 in the tables
    ] = 16
    temperature: Annotated[float, _TEMPERATURE] = 1.0
    max_tokens: Annotated[int, _MAX_TOKENS] = 64
    limit: Annotated[int | None, _LIMIT] = None
    """How many prompts are taken, from the first on; None: all of them."""
    template: Annotated[str, _TEMPLATE] = "none"
    """chat, or chat-turns: each prompt becomes a user turn of the aligned model's chat template."""
    system_prompt: Annotated[str | None, _SYSTEM_PROMPT] = None

    @property
    def chat(self) -> bool:
        return self.template in _CHATS


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """What is asked of a pair and its engines. None means: lambdasweep chooses, and records what it chose."""

    base_revision: Annotated[
        str | None, Setting("Branch, tag or commit of base, where it is a hub id.", PAIR, "REVISION", default="main")
    ] = None
    aligned_revision: Annotated[
        str | Mapping[str, str | None] | None,
        Setting("The same of aligned; of several NAME=REVISION,NAME=REVISION.", PAIR, "REVISION", default="main"),
    ] = None
    tokenizer: Annotated[
        str, Setting("Whose tokenizer makes the requests; one of several aligned ones by name.", PAIR, one_of=_parents)
    ] = "base"
    """base, aligned or one of several by name; aligned where vocab is shared."""
    method: Annotated[
        str, Setting("A straight line, or slerp along the arc of each tensor.", LINE, one_of=_methods)
    ] = "linear"
    lam_map: Annotated[
        str,
        Setting(
            "Weights on λ by module: layers.0-9=0.3,layers.10-=0.8.", LINE, "PATTERN=WEIGHT,…", default="1 everywhere"
        ),
    ] = ""
    """As in `merge.lam_map`; empty: 1 everywhere."""
    vocab: Annotated[
        str,
        Setting(
            "Where vocabularies differ: refuse, or take aligned's rows of other tokens.", LINE, one_of=_vocabularies
        ),
    ] = "strict"
    tp: Annotated[
        int | None,
        Setting(
            "Tensor-parallel ranks of each engine; auto: the fewest whose GPUs hold the model, one on a CPU.",
            metavar="[N|auto]",
            least=1,
            default=AUTO,
            auto=True,
        ),
    ] = None
    pp: Annotated[int, Setting("Pipeline stages of each engine, of --tp ranks each.", metavar="N", least=1)] = 1
    dtype: Annotated[
        str, Setting("What engines compute in; auto: float32 on a CPU, the checkpoint's on a GPU.", one_of=_dtypes)
    ] = "auto"
    max_model_len: Annotated[
        int | None,
        Setting(
            "Longest request in tokens; longer ones are quarantined.",
            metavar="TOKENS",
            least=1,
            default="the longest request of the tasks, rounded up",
        ),
    ] = None
    """None: the longest request of the tasks, rounded up; where requests are not known beforehand, what the model takes."""
    parents: Annotated[
        str,
        Setting("Where each rank keeps both parents (reload: nowhere); it changes no number.", one_of=_tiers),
    ] = "auto"
    engine: Annotated[
        dict[str, Any], Setting("A further argument of vLLM; repeatable.", metavar="KEY=VALUE", default="none")
    ] = field(default_factory=dict)
    replicas: Annotated[
        int | None,
        Setting("vLLM engines at the same time.", CLUSTER, "N", least=1, default="as many as there is room for"),
    ] = None
    accelerator_type: Annotated[
        str | None,
        Setting("Use only GPUs of this kind, by Ray's name: H100, say.", CLUSTER, "KIND", default="any"),
    ] = None
    address: Annotated[
        str | None, Setting("A running Ray cluster.", CLUSTER, "ADDRESS", default="one is started on this machine")
    ] = None


@functools.cache
def settings(group: type) -> tuple[tuple[str, type, Setting], ...]:
    """Return the name of each setting, what its flag takes, and what is said of it.

    A flag takes `bool`, `int`, `float`, `str`, or `dict`, which is repeated KEY=VALUE.
    """
    hints = get_type_hints(group, include_extras=True)
    found: list[tuple[str, type, Setting]] = []
    for one in dataclasses.fields(group):
        if get_origin(hints[one.name]) is not Annotated:
            continue  # a subclass has fields that are no settings
        hint, said = get_args(hints[one.name])
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        taken = {get_origin(kind) or kind for kind in kinds}
        found.append((one.name, next(kind for kind in (bool, int, float, dict, str) if kind in taken), said))
    return tuple(found)


def names_of(group: type) -> tuple[str, ...]:
    """Return the names of the settings of a group."""
    return tuple(name for name, _, _ in settings(group))


def default_of(group: type, name: str) -> str | None:
    """Return in words what holds where a setting is not given; None where nothing is to be said."""
    said = next(said for one, _, said in settings(group) if one == name)
    value = next(one.default for one in dataclasses.fields(group) if one.name == name)
    return (
        said.default
        if said.default is not None or value is None
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def as_flag(name: str) -> str:
    """Return what a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def problems_of(values: Mapping[str, Any], group: type, called: Callable[[str], str] = as_flag) -> list[str]:
    """Return which values are too small or too large, or none of those that there are.

    Args:
        values: by name; what is None or absent was not given.
        group: whose settings they are.
        called: what a setting is called in messages.
    """
    found = []
    for name, _, said in settings(group):
        value = values.get(name)
        if value is None or (said.auto and value == AUTO):
            continue
        if said.least is not None and not said.least <= value <= (said.most or value):
            wanted = f"{said.least} or more" if said.most is None else f"{said.least} to {said.most}"
            found.append(f"{called(name)} is {value}: give {wanted}")
        if said.one_of and value not in (known := said.one_of(values)):
            found.append(f"{called(name)} is {value!r}: use {', '.join(known)}")
    return found
