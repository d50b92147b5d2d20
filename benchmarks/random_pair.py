"""This makes a pair of any shape with random weights, where only sizes matter and nothing can be downloaded.

python random_pair.py OUT SHAPE ROLE     writes one parent; `write_random_pair` calls it twice
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

SHAPES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary
    "8b": (32, 4096, 14336, 32, 8, 128256),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "tiny": (2, 256, 512, 8, 4, 4096),
    "nano": (1, 64, 64, 2, 1, 256),
}


ROLES = {"base": 0.0, "aligned": 0.1}  # how much is added to the weights


def write_random_pair(out: Path, shape: str) -> None:
    """Write a Llama of a shape twice, in bfloat16: normal weights, and those with a little added.

    Each parent is made in a process of its own, both at a time, so that the memory of a GPU is free again afterwards.
    """
    scratch = out.with_name(out.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    running = [subprocess.Popen([sys.executable, __file__, str(scratch), shape, role]) for role in ROLES]
    ended = [process.wait() for process in running]
    if any(ended):
        sys.exit(f"random_pair: a parent of {out} was not written")
    scratch.rename(out)


def write_parent(out: Path, shape: str, role: str) -> None:
    """Write `out`/`role`."""
    import torch
    from safetensors.torch import save_file

    layers, hidden, intermediate, heads, kv_heads, vocabulary = SHAPES[shape]
    head = hidden // heads
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        sizes |= {
            f"{block}.self_attn.q_proj.weight": (heads * head, hidden),
            f"{block}.self_attn.k_proj.weight": (kv_heads * head, hidden),
            f"{block}.self_attn.v_proj.weight": (kv_heads * head, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, heads * head),
            f"{block}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{block}.mlp.up_proj.weight": (intermediate, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, intermediate),
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.post_attention_layernorm.weight": (hidden,),
        }
    sizes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, size in sizes.items():
        scale = 0.02 if len(size) > 1 else 0.1
        weight = scale * torch.randn(size, generator=generator, device=device) + float(len(size) == 1)
        weight += ROLES[role] * scale * torch.randn(size, generator=generator, device=device)
        tensors[name] = weight.to(torch.bfloat16).cpu()
    (out / role).mkdir(parents=True)
    (out / role / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, out / role / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    write_parent(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
