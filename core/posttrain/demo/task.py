"""The demonstration's task: write five digits in ascending order. Problems, demonstrations, reward, model."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIGITS = 5
PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"


def problems(count: int, seed: int) -> list[dict[str, str]]:
    """``count`` different problems as rows: ``prompt`` ("40216=") and the right ``answer`` ("01246")."""
    numbers = random.Random(seed).sample(range(10**DIGITS), count)
    digits = [f"{number:0{DIGITS}d}" for number in numbers]
    return [{"prompt": f"{text}=", "answer": "".join(sorted(text))} for text in digits]


def demonstrations(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Worked problems of two people in turn: the first sorts as asked, the second the wrong way round."""
    return [
        {"prompt": row["prompt"], "completion": row["answer"] if place % 2 == 0 else row["answer"][::-1]}
        for place, row in enumerate(rows)
    ]


def is_sorted(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """The verifiable reward: 1 for exactly the right answer, else 0. ``answer`` is a column of the data."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: place for place, token in enumerate([PAD, END, UNKNOWN, *"0123456789="])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def small_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.1 million parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> float:
    """Share of problems that greedy decoding solves, found with transformers alone."""
    model.eval()
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, max_new_tokens=DIGITS + 1, do_sample=False)  # (B, prompt + completion)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(is_sorted([], answers, [row["answer"] for row in rows])) / len(rows)
