"""The sizes of a model that engines are started by, read where vLLM reads them: in the config class of transformers, which
knows each architecture's names and defaults, and for a wrapper in its text config.

A config that transformers does not know is read as it is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from merge.checkpoint import Checkpoint
from merge.config_meaning import made_by_class
from merge.pair import Pair
from merge.text_part import text_part

# As vLLM 0.32 has them; the smallest counts.
_WINDOWS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
_HEAD_DIMS = ("head_dim", "global_head_dim", "hidden_size_per_head")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TAKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")
_ATTENTION = {"sliding_attention", "full_attention", "chunked_attention"}
# What configs of models have some of whose layers keep a state instead of keys and values of each token.
_STATES = (
    "layers_block_type", "hybrid_override_pattern", "mamba_d_state", "mamba_d_ssm", "mamba_num_heads",
    "mamba_expand", "state_size", "ssm_state_size", "conv_L_cache", "linear_num_value_heads", "attn_layer_indices",
)  # fmt: skip
# Rotary embeddings whose window is written after scaling; that of the others is before, and is multiplied by `factor`.
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_LONG = ("su", "longrope")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """None stands for what the config does not say."""

    window: int | None  # tokens
    layers: int | None
    kv_values_per_token: int  # numbers of keys and values over all layers, at most; 0 where the config does not say
    short_window: int | None = None
    """How long the prompts are, at most, for which the model's short rotary factors are meant; None: it has one kind only.
    vLLM takes the long ones for every prompt as soon as an engine takes longer prompts; transformers goes by each prompt."""
    heads: int | None = None
    kv_heads: int | None = None
    windowed_layers: int = 0
    """How many layers see the last `sliding_window` tokens only, in a model that has other layers, too."""
    sliding_window: int | None = None  # tokens
    has_plain_cache: bool = False
    """Whether every layer keeps keys and values of each token and nothing else, as far as the config tells: no latent ones,
    no state of a state space or a convolution."""
    is_hybrid: bool = False
    """Whether some layers keep a state instead of keys and values, as far as the config tells: no prefix is cached then."""
    vocabulary: int | None = None
    expert_share: float = 1.0  # the share of the model's experts that a token is sent to
    step_values_per_token: int = 0
    """How many numbers the widest layer holds of a token, at most: six times the residual stream, and what goes into its
    activation function and comes out of it, or into and out of those of the experts that the token goes to."""

    def can_be_dealt_to(self, ranks: int) -> bool:
        """Tell whether tensor-parallel ranks get whole heads, as vLLM wants it. Several may share one of keys and values.

        What the config does not say is no hindrance.
        """
        heads, kv_heads = self.heads or ranks, self.kv_heads or ranks
        return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def model_sizes(checkpoint: Checkpoint) -> ModelSizes:
    """Read the sizes of a checkpoint's language model.

    Raises:
        PairError: the checkpoint wraps a language model that cannot be had.
    """
    part = text_part(checkpoint)
    read = _reader(part.config if part else checkpoint.config)
    ropes = list(_rope_tables(read))
    layers, heads, hidden = (
        _int(read("num_hidden_layers")),
        _int(read("num_attention_heads")),
        _int(read("hidden_size")),
    )
    dims = [dim for key in _HEAD_DIMS if (dim := _int(read(key)))]
    if not dims and heads and hidden:
        dims = [hidden // heads]
    kv_heads = next((count for key in _KV_HEADS if (count := _int(read(key)))), heads)
    # Falcon's new decoder architecture has groups of heads, whatever its `multi_query` says.
    if read("multi_query") and not read("new_decoder_architecture"):
        kv_heads = 1
    values = 2 * layers * kv_heads * max(dims) if layers and kv_heads and dims else 0
    kinds = [str(kind) for kind in read("layer_types") or ()]
    is_hybrid = not {*kinds} <= _ATTENTION or any(read(key) is not None for key in _STATES)
    is_plain = not is_hybrid and "chunked_attention" not in kinds and read("kv_lora_rank") is None
    return ModelSizes(
        window=_window(read, ropes),
        layers=layers,
        kv_values_per_token=values,
        short_window=_short_window(read, ropes),
        heads=heads,
        kv_heads=kv_heads,
        windowed_layers=kinds.count("sliding_attention"),
        sliding_window=_int(read("sliding_window")),
        has_plain_cache=is_plain and values > 0,
        is_hybrid=is_hybrid,
        vocabulary=_int(read("vocab_size")),
        expert_share=_expert_share(read),
        step_values_per_token=_step_values(read, hidden or 0),
    )


def _expert_share(read: Callable[[str], Any]) -> float:
    taken = _taken(read)
    count = next((found for key in _EXPERTS if (found := _int(read(key)))), None)
    return taken / count if taken and count else 1.0


def _taken(read: Callable[[str], Any]) -> int | None:
    """Return how many experts a token is sent to. Where it is a number for each layer, it is not known."""
    return next((taken for key in _TAKEN if (taken := _int(read(key)))), None)


def _step_values(read: Callable[[str], Any], hidden: int) -> int:
    inner = _int(read("intermediate_size")) or 4 * hidden
    experts = _taken(read) or 0
    expert = _int(read("moe_intermediate_size")) or inner
    return 6 * hidden + max(3 * inner, experts * (max(2 * expert, hidden) + expert))


def sizes_of(pair: Pair) -> ModelSizes:
    """Read the sizes of θ(λ), with the smallest window of all parents.

    Raises:
        PairError: as `model_sizes`.
    """
    windows = [model_sizes(parent).window for parent in pair.parents.values()]
    return replace(model_sizes(pair.shaped), window=_smallest(windows))


def _smallest(windows: Iterable[int | None]) -> int | None:
    return min((window for window in windows if window is not None), default=None)


def _window(read: Callable[[str], Any], ropes: list[Mapping[str, Any]]) -> int | None:
    window = _smallest(_int(read(key)) for key in _WINDOWS)
    if window is None or "gemma3" in str(read("model_type")):  # Gemma-3's window is written after scaling
        return window
    factors = [rope.get("factor") for rope in ropes if _kind(rope) not in _SCALED]
    return int(window * next((factor for factor in reversed(factors) if factor), 1))


def _short_window(read: Callable[[str], Any], ropes: list[Mapping[str, Any]]) -> int | None:
    for rope in ropes:
        if _kind(rope) in _LONG:
            own = rope.get("original_max_position_embeddings")
            return _int(own if own is not None else read("original_max_position_embeddings"))
    return None


def _rope_tables(read: Callable[[str], Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of each kind of rotary embedding; layers of different types may have different ones."""
    table = read("rope_parameters") or read("rope_scaling")
    if isinstance(table, Mapping):
        nested = [value for value in table.values() if isinstance(value, Mapping)]
        yield from nested or [table]


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _reader(config: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that looks a key up."""
    made = made_by_class(config)
    if made is None:
        return config.get
    made = made.get_text_config()
    return lambda key: getattr(made, key, None)


def _int(value: Any) -> int | None:
    return value if type(value) is int else None
