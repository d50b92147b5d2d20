"""This module computes what an engine needs of a GPU besides its weights, from the sizes of a model. It needs no torch.

Keys and values need room for a request of the greatest length, and for the requests of a few steps. Requests that are scored
end with the step that computes them, so that only samples make use of more room. Steps need room for the largest thing that
they make.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merge.model_sizes import ModelSizes

# The tokens of so many steps have room beside the longest request. Two steps may be in flight, the tokens that choices have
# in common are kept until the last of the choices, and blocks that are partly filled take room, too.
_STEPS = 3
_IN_FLIGHT = 2  # on a GPU the next step is scheduled while one is computed; pipeline stages have one step each
# A step holds the logits of all its requests in float32 so many times: the head's output, a copy that is scored, vLLM's
# probabilities, and its noise.
_LOGITS_COPIES = 4
# So many bytes of logits are scored at a time, and three passes work on them (`serve.hooks`).
_SCORED_BYTES = 3 * (512 << 20)
_LOGITS_ITEM = 4  # float32
_ALIKE = 1.5  # vLLM's bound on the ratio of the counts of two kinds of layers, see `_padded_layers`


@dataclass(frozen=True, slots=True)
class Needs:
    """This says what a rank needs, in bytes."""

    request: int  # keys and values of a request of the greatest length take it; 0 where the config does not tell
    scoring: int  # with room for so many keys and values scoring never waits; 0 where the config does not tell
    step: int  # a step makes at most so much: what its widest layer does, or its logits


def needs(
    sizes: "ModelSizes", max_model_len: int, step_tokens: int, step_requests: int, item: int, tensor: int, pipeline: int
) -> Needs:
    """Return what a rank needs.

    Args:
        sizes: the sizes of the model.
        max_model_len: tokens of the longest request.
        step_tokens: tokens of a step, at most.
        step_requests: requests of a step, at most.
        item: bytes of a number that the engine computes with.
        tensor: ranks that share each layer.
        pipeline: stages.
    """
    # A rank has whole heads. Where there are fewer heads than ranks, several ranks have the same one.
    heads = sizes.kv_heads or tensor
    share = -(-heads // tensor) / heads / pipeline
    of_layer = sizes.kv_values_per_token / (sizes.layers or 1) * item * share if sizes.has_plain_cache else 0
    whole, windowed = _padded_layers(sizes)
    # The tokens of these steps are kept beside the window until the steps are done.
    in_flight = max(_IN_FLIGHT, pipeline) * step_tokens
    held = min(max_model_len, (sizes.sliding_window or 0) - 1 + in_flight)
    request = (whole * max_model_len + windowed * held) * of_layer
    scoring = request + _STEPS * step_tokens * (whole + windowed) * of_layer
    wide = step_tokens * sizes.step_values_per_token * item
    logits = _LOGITS_COPIES * step_requests * (sizes.vocabulary or 0) * _LOGITS_ITEM + _SCORED_BYTES
    return Needs(request=round(request), scoring=round(scoring), step=max(wide, logits))


def _padded_layers(sizes: "ModelSizes") -> tuple[int, int]:
    """Return for how many layers vLLM makes room: without a sliding window, and with one, which keep what it sees.

    vLLM deals the layers to groups of one size, that of the smaller kind or, where both are about as many, of the larger
    one, and fills the last group of each kind up.
    """
    layers, windowed = sizes.layers or 0, sizes.windowed_layers
    whole = layers - windowed
    if not windowed or not whole or sizes.sliding_window is None:
        return layers, 0
    least, most = sorted((whole, windowed))
    group = most if most < _ALIKE * least else least
    return group * -(-whole // group), group * -(-windowed // group)
