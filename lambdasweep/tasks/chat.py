"""A chat template comes with a checkpoint and turns messages into text.

Messages are rendered as lm-evaluation-harness 0.4.13 does for its `hf` model with `apply_chat_template`: by the tokenizer
that encodes the text, so that the template's `bos_token` is that tokenizer's own.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.errors import PairError

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_PROBE = "Answer the question with the word blue."  # a system message that no template holds itself


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template and the transformers tokenizer that renders it. It can be called, as lm-eval's tasks do."""

    source: str
    tokenizer: Any
    system_prompt: str | None = None  # where one was asked for, no system message is left out

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the template's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def takes_system(self) -> bool:
        """Tell whether the template takes a system message."""
        return self._shows(_PROBE)

    def asked(self, system_prompt: str | None) -> "ChatTemplate":
        """Return the template of a task with this system prompt, which it then does not leave out."""
        return replace(self, system_prompt=system_prompt)

    def _shows(self, system_prompt: str) -> bool:
        """Tell whether a system message is in what is rendered. A template may refuse it, or skip it without a word."""
        from jinja2.exceptions import TemplateError

        user = {"role": "user", "content": "a"}
        try:
            with_it = self._render([{"role": "system", "content": system_prompt}, user], True)
        except TemplateError:
            return False
        if system_prompt.strip() not in with_it:
            return False
        try:
            return with_it != self._render([user], True)
        except TemplateError:
            return True  # it wants a system message

    def check_system(self, system_prompt: str | None) -> list[str]:
        """Return what is wrong with a system prompt, if anything: it must not be left out in silence."""
        if system_prompt is None or self._shows(system_prompt):
            return []
        if self.takes_system:
            return ["the aligned model's chat template does not show this system prompt: give another --system-prompt"]
        return ["the aligned model's chat template takes no system message: leave --system-prompt out"]

    def __call__(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Render messages; system messages are left out where the template refuses them, as lm-eval does.

        Where a system prompt was asked for they are not. Without a generation prompt, the last message is left open, so that
        it can be continued.

        Raises:
            jinja2.exceptions.TemplateError: the template cannot be read, or refuses the messages.
            PairError: the template left out the system prompt that was asked for.
        """
        from jinja2.exceptions import TemplateError

        if self.system_prompt is not None:
            text = self._render(messages, add_generation_prompt)
            if self.system_prompt.strip() not in text:
                raise PairError("it leaves the system prompt out: leave --system-prompt out, or take other --shots")
            return text
        try:
            return self._render(messages, add_generation_prompt)
        except TemplateError:
            rest = [message for message in messages if message["role"] != "system"]
            if len(rest) == len(messages):
                raise
            return self._render(rest, add_generation_prompt)

    def _render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.source,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text


def read_template(directory: str | Path) -> str:
    """Return a checkpoint's chat template.

    It is in chat_template.jinja, or else it is `chat_template` of tokenizer_config.json; if that names several, it is the
    one named `default`.

    Raises:
        PairError: the checkpoint has no chat template, or it cannot be read.
    """
    path = Path(directory)
    try:
        if (path / _FILE).is_file():
            return (path / _FILE).read_text(encoding="utf-8")
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8")) if (path / _CONFIG).is_file() else {}
    except (OSError, ValueError) as error:  # bytes that are not UTF-8 and text that is not JSON are ValueErrors
        raise PairError(f"the chat template in {path} cannot be read: {error}") from None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str) or not found:
        raise PairError(
            f"{path} has no chat template, neither {_FILE} nor chat_template in {_CONFIG}: "
            "put one there, or leave --template out"
        )
    return found
