"""The demonstration's model: a Llama of 0.1 million parameters that reads and writes single characters."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.example.task import DIGITS, is_sorted

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"


def character_tokenizer(characters: str = "0123456789=") -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token a character; a character outside ``characters`` is unknown."""
    vocabulary = {token: place for place, token in enumerate([PAD, END, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def small_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, positions: int = 32, width: int = 64
) -> LlamaForCausalLM:
    """Build a Llama with random weights, 0.1 million at the usual width, for at most ``positions`` tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> float:
    """Return the share of problems that greedy decoding solves, computed by transformers alone."""
    model.eval()
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, max_new_tokens=DIGITS + 1, do_sample=False)  # (B, prompt + completion)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(is_sorted([], answers, [row["answer"] for row in rows])) / len(rows)
