"""This module has vLLM load the language model of a checkpoint that wraps one for several modalities.

Otherwise vLLM would load the wrapper, with everything that images need: libraries, a tokenizer, memory. Here it is given
another parser of configs and another loader of weights, which show it the language model that `merge.text_part` finds.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vllm.config.utils import replace
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.transformers_utils.config import HFConfigParser, register_config_parser

from merge.checkpoint import open_checkpoint
from merge.text_part import architecture_of, text_part

TEXT_PART = "lambdasweep_text_part"  # the name of the parser and of the loader


def text_arguments(model: Path) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for loading the language model that a checkpoint wraps, or is.

    Raises:
        PairError: the language model cannot be had.
    """
    checkpoint = open_checkpoint(str(model), "model")
    part = text_part(checkpoint)
    arguments: dict[str, Any] = {"config_format": TEXT_PART, "load_format": TEXT_PART} if part else {}
    if architecture_of(checkpoint) == "Llama4ForCausalLM":
        # Left to itself vLLM goes by the longest request that an engine takes, and transformers by the config.
        is_tuned = bool((part.config if part else checkpoint.config).get("attn_temperature_tuning", True))
        arguments["override_generation_config"] = {"attn_temperature_tuning": is_tuned}
    return arguments


@register_config_parser(TEXT_PART)
class TextPartParser(HFConfigParser):  # type: ignore[misc]
    """Parses the config of the language model."""

    def parse(
        self, model: str | Path, trust_remote_code: bool, *rest: Any, **settings: Any
    ) -> tuple[dict[str, Any], Any]:
        part = text_part(open_checkpoint(str(model), "model"))
        assert part is not None
        with tempfile.TemporaryDirectory(prefix="lambdasweep-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(part.config))
            values, config = super().parse(folder, trust_remote_code, *rest, **settings)
        config.name_or_path = str(model)
        return values, config


@register_model_loader(TEXT_PART)
class TextPartLoader(DefaultModelLoader):  # type: ignore[misc]
    """Loads the tensors of the language model by the names that it has for them."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(replace(load_config, load_format="safetensors"))

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        part = text_part(open_checkpoint(model_config.model, "model"))
        assert part is not None
        for name, tensor in super().get_all_weights(model_config, model):
            if name in part.names:
                yield part.names[name], tensor
