"""Makes the demo pair and its tasks: `python examples/train_demo_pair.py [--out DIR]`. Seeded; minutes on two cores.

`base` learns the world of `lambdasweep/demo/world.py` by likelihood: it sees questions with the answer that was true, so the
best it can do is to be as sure as the evidence is. `aligned` is post-trained from it by direct preference optimisation
(Rafailov et al., 2023), with the true answer preferred to another one drawn at random. With preferences of that kind the
optimum of DPO is π_ref · posterior^(1/β): sharper than the evidence, as post-trained models are.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lambdasweep.demo
from lambdasweep.demo import world

TASKS = ("letters", "cloze")
END = "<|endoftext|>"
VOCAB, POSITIONS = 512, 512
BASE_STEPS, DPO_STEPS = 600, 100
BATCH = 32  # questions of each task in a step
BASE_RATE, DPO_RATE = 3e-3, 3e-4
BETA = 0.5
CONTEXT_WEIGHT = 0.05  # of a context token in the loss of the base; an answer token weighs 1

Sequence = tuple[list[int], int]  # token ids, and where the answer starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=lambdasweep.demo.BASE.parent)
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings
    out.mkdir(parents=True, exist_ok=True)
    for task, questions in world.evaluation().items():
        (out / f"{task}.jsonl").write_text(world.to_jsonl(questions))

    tokenizer = train_tokenizer()
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    print(f"{sum(parameter.numel() for parameter in base.parameters())} parameters")
    train_base(base, tokenizer)
    save(base, tokenizer, out / "base")
    aligned = train_aligned(base, tokenizer)
    save(aligned, tokenizer, out / "aligned")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on questions of the world."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = []
    for question in islice(world.training(Random(1)), 2000):
        for task in TASKS:
            context, answers = world.render(task, question)
            texts.append(context + answers[question.gold])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def sequences(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[world.Question], rng: Random | None = None
) -> list[Sequence]:
    """Tokenise the next batch with the true answers, and with `rng` also with another answer each, drawn at random."""
    rows: list[Sequence] = []
    others: list[Sequence] = []
    for task in TASKS:
        for question in islice(stream, BATCH):
            context, answers = world.render(task, question)
            start = len(tokenizer(context)["input_ids"])
            rows.append((tokenizer(context + answers[question.gold])["input_ids"], start))
            if rng:
                wrong = [answer for index, answer in enumerate(answers) if index != question.gold]
                others.append((tokenizer(context + wrong[int(rng.random() * len(wrong))])["input_ids"], start))
    return rows + others


def answer_logprobs(model: LlamaForCausalLM, rows: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return per row the summed logprob of its answer and of its context, in nats; [rows] each."""
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    parts = [by_length[: len(rows) // 2], by_length[len(rows) // 2 :]]  # cloze is half as long as letters: pad less
    answers, contexts = torch.zeros(len(rows)), torch.zeros(len(rows))
    for part in parts:
        length = max(len(rows[row][0]) for row in part)
        ids = torch.zeros(len(part), length, dtype=torch.long)
        is_answer = torch.zeros(len(part), length)
        is_context = torch.zeros(len(part), length)
        for place, row in enumerate(part):
            tokens, start = rows[row]
            ids[place, : len(tokens)] = torch.tensor(tokens)
            is_answer[place, start : len(tokens)] = 1
            is_context[place, :start] = 1
        logprobs = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        answers = answers.index_put((torch.tensor(part),), (logprobs * is_answer[:, 1:]).sum(-1))
        contexts = contexts.index_put((torch.tensor(part),), (logprobs * is_context[:, 1:]).sum(-1))
    return answers, contexts


def train_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Maximise the likelihood of the answers."""
    stream = world.training(Random(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(BASE_STEPS):
        set_rate(optimizer, BASE_RATE, step, BASE_STEPS)
        answer, context = answer_logprobs(model, sequences(tokenizer, stream))
        descend(model, optimizer, -(answer + CONTEXT_WEIGHT * context).mean())
        if (step + 1) % 50 == 0:
            print(f"base     step {step + 1}: {-answer.mean().item():.3f} nats an answer", flush=True)


def train_aligned(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Prefer the true answer to another one, starting from the base and held to it."""
    model = copy.deepcopy(base)
    stream, rng = world.training(Random(3)), Random(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=DPO_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(DPO_STEPS):
        set_rate(optimizer, DPO_RATE, step, DPO_STEPS)
        rows = sequences(tokenizer, stream, rng)
        with torch.no_grad():
            reference, _ = answer_logprobs(base, rows)
        gain = answer_logprobs(model, rows)[0] - reference
        half = len(rows) // 2
        margin = gain[:half] - gain[half:]
        descend(model, optimizer, -logsigmoid(BETA * margin).mean())
        if (step + 1) % 20 == 0:
            print(f"aligned  step {step + 1}: margin {margin.mean().item():+.3f} nats", flush=True)
    return model


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Warm up over 30 steps, then follow a cosine to a tenth."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1, (step + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def descend(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take one step down the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a bfloat16 checkpoint with its tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
