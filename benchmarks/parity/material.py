"""What both sides get: a tiny Llama, its tokenizer, rows of unlike lengths, and sampled completions that are fixed.

    python benchmarks/parity/material.py FOLDER

writes FOLDER/model, FOLDER/reward-model (the same with a head for scores), FOLDER/sft.jsonl, preference.jsonl,
prompts.jsonl and rollouts.json. The content depends on nothing but this file.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

ROWS = 32
GROUP = 4
"""Completions of a prompt."""
LONGEST = 24
"""Tokens of the longest completion of an online method."""
_NOUNS = ["river", "stone", "window", "garden", "letter", "engine", "market", "winter", "singer", "bridge", "orchard"]
_VERBS = ["finds", "carries", "paints", "follows", "opens", "mends", "counts", "watches"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def write(folder: Path) -> None:
    """Write everything into ``folder``."""
    rows = _rows()
    _json_lines(folder / "sft.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])
    _json_lines(folder / "preference.jsonl", rows)
    prompts = [row["prompt"] for row in rows[: ROWS // 2]]
    _json_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    tokenizer = _tokenizer([text for row in rows for text in row.values()])
    _write_models(folder, tokenizer)
    (folder / "rollouts.json").write_text(json.dumps(_rollouts(prompts, tokenizer)), encoding="utf-8")


def _rows() -> list[dict[str, str]]:
    """Preference rows whose answers have 1 to 26 words."""
    source = random.Random(7)

    def words(count: int) -> str:
        return "".join(f" {source.choice(_NOUNS if place % 2 else _VERBS)}" for place in range(count))

    rows = []
    for number in range(ROWS):
        prompt = f"Line {number}: the {source.choice(_NOUNS)}{words(source.randint(1, 12))}:"
        rows.append(
            {"prompt": prompt, "chosen": words(source.randint(1, 26)), "rejected": words(source.randint(1, 26))}
        )
    return rows


def _tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE trained on ``texts``, with a start token that it adds itself, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _write_models(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
        initializer_range=0.1,
    )
    torch.manual_seed(3)
    for name, kind in (("model", LlamaForCausalLM), ("reward-model", LlamaForSequenceClassification)):
        kind(config).float().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _rollouts(prompts: list[str], tokenizer: Any) -> dict[str, list[list[int]]]:
    """Prompt's token ids, as text -> ``GROUP`` completions; most end with the stop token, some are cut off."""
    source = random.Random(11)
    found = {}
    for prompt in prompts:
        completions = []
        for _ in range(GROUP):
            length = source.randint(2, LONGEST)
            ids = [source.randrange(len(_SPECIAL), len(tokenizer)) for _ in range(length)]
            if length < LONGEST:
                ids[-1] = tokenizer.eos_token_id
            completions.append(ids)
        found[key(tokenizer(prompt)["input_ids"])] = completions
    return found


def key(ids: list[int]) -> str:
    """How ``rollouts.json`` names a prompt."""
    return " ".join(map(str, ids))


def reward(text: str) -> float:
    """The verifiable reward of the online cases: the share of lower-case vowels among the characters."""
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def _json_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
