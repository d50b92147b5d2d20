"""Quantised checkpoints are known by their config, by the files beside it, and by the names and dtypes of their tensors.

There is no line between quantised weights: the mean of two codes is not the code of the mean, and the two parents have
scales of their own. What has to be given instead is said for each kind.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORIGINAL = "give the BF16, F16 or F32 checkpoint that it was made from"


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of quantising.

    `methods` are the names of it in a config, `tensors` matches names that only such a checkpoint has, `dtypes` are those of
    its weights, and `files` stand beside them.
    """

    name: str
    methods: tuple[str, ...]
    instead: str = ORIGINAL
    tensors: str = r"(?!)"
    dtypes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


KINDS = (
    Kind("ModelOpt", ("modelopt", "modelopt_fp8", "modelopt_fp4"), files=("hf_quant_config.json",)),
    Kind(
        "FP8",
        ("fp8", "fbgemm_fp8"),
        "give the BF16 checkpoint; where FP8 is all that was published, multiply each block of a weight by its "
        "weight_scale_inv and save it in BF16",
        r".*\.weight_scale_inv",
        ("F8_E4M3", "F8_E5M2"),
    ),
    Kind("GPTQ", ("gptq", "gptq_marlin", "gptqmodel"), tensors=r".*\.g_idx", files=("quantize_config.json",)),
    Kind("AWQ", ("awq", "awq_marlin"), tensors=r".*\.qzeros", files=("quant_config.json",)),
    Kind(
        "bitsandbytes",
        ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
        f"{ORIGINAL}, or load it in transformers, call dequantize() and save_pretrained(…)",
        r".*\.(SCB|absmax|quant_map|quant_state\..*)",
        ("I8",),
    ),
    Kind(
        "MXFP4",
        ("mxfp4", "quark"),
        "give a BF16 checkpoint: load it in transformers with quantization_config=Mxfp4Config(dequantize=True) and "
        "save_pretrained(…)",
        r".*_blocks",
        ("U8", "F8_E8M0"),
    ),
    Kind(
        "compressed-tensors",
        ("compressed-tensors", "compressed_tensors", "sparseml"),
        f"{ORIGINAL}, or load it in transformers with CompressedTensorsConfig(run_compressed=False) and save_pretrained(…)",
        r".*\.weight_(packed|shape|zero_point|scale)",
    ),
    Kind("int32 codes", (), tensors=r".*\.(qweight|codes)", dtypes=("I32",)),
)
_GGUF = (
    "{what} is GGUF, and only safetensors are read: give the checkpoint that it was converted from, or load it in "
    "transformers with gguf_file=… and save_pretrained(…)"
)


def gguf_problem(path: Path) -> str | None:
    """Return what to say of a GGUF file, or of a directory with nothing else in it; None for everything else."""
    if path.is_file():
        return _GGUF.format(what=path.name) if path.suffix == ".gguf" else None
    found = sorted(file.name for file in path.glob("*.gguf"))
    return _GGUF.format(what=", ".join(found[:3])) if found and not any(path.glob("*.safetensors")) else None


def quantised_problem(path: Path, config: Mapping[str, Any], dtypes: Mapping[str, str]) -> str | None:
    """Return how a checkpoint is quantised and what to give instead, or None where it is not.

    Args:
        path: the checkpoint's directory.
        config: its config.json.
        dtypes: the dtype of each tensor, as safetensors names it, by the tensor's name.
    """
    where, method = _configured(config)
    if where:
        known = next((kind for kind in KINDS if method.lower() in kind.methods), None)
        return _said(
            known.name if known else method or "a method of its own", where, known.instead if known else ORIGINAL
        )
    for kind in KINDS:
        for name in kind.files:
            if (path / name).is_file():
                return _said(kind.name, name, kind.instead)
        names = re.compile(kind.tensors)
        for name, dtype in dtypes.items():
            if names.fullmatch(name) or (dtype in kind.dtypes and name.endswith(".weight")):
                return _said(kind.name, f"tensor {name}, {dtype}", kind.instead)
    return None


def _configured(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the place in a config that tells of quantisation, and the method's name; "" for both where there is none."""
    for at, level in (("", config), *((f"{key}.", part) for key, part in config.items() if isinstance(part, dict))):
        for key in ("quantization_config", "compression_config"):
            if (settings := level.get(key)) and isinstance(settings, dict):
                return f"config.json: {at}{key}", str(settings.get("quant_method") or settings.get("quant_algo") or "")
    return "", ""


def _said(method: str, where: str, instead: str) -> str:
    return f"it is quantised with {method} ({where}), and there is no line between quantised weights: {instead}"
