"""This makes, in a second, tiny checkpoints with random weights that transformers and vLLM can run."""

import functools
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 512
POSITIONS = 512
SPECIAL = ("<s>", "</s>", "<pad>")
_PAIRS = "th he in er an re on at en nd ti es or te of ed is it al ar"


def write_checkpoint(
    directory: Path,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    tie: bool = True,
    vocab: int = VOCAB,
    max_shard_size: str | None = None,
) -> Path:
    """Write a two-layer Llama with seeded weights, and its tokenizer; return `directory`.

    Every weight depends on the seed, the norms too, and is large enough that its logits are far from uniform.
    `max_shard_size` (such as "100KB") splits the weights over files with an index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in _files(seed, dtype, tie, vocab, max_shard_size).items():
        (directory / name).write_bytes(data)
    return directory


@functools.cache
def _files(seed: int, dtype: torch.dtype, tie: bool, vocab: int, max_shard_size: str | None) -> dict[str, bytes]:
    """Return the files of a checkpoint by their names; most tests want one of the same few."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=tie,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator) + float("norm" in name))
    with tempfile.TemporaryDirectory() as directory:
        model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size or "1GB")
        write_tokenizer(Path(directory))
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer of bytes, " A" and its like for each ASCII letter, and some pairs."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    merges = [("Ġ", letter) for letter in letters] + [(pair[0], pair[1]) for pair in _PAIRS.split()]
    strings = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(one + two for one, two in merges)]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(strings)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.save_pretrained(directory)
