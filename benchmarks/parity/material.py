"""What both sides get: a tiny Llama, its tokenizer, rows of unlike lengths, and sampled completions that are fixed.

    python benchmarks/parity/material.py FOLDER

writes FOLDER/model, FOLDER/other-model, FOLDER/reward-model and FOLDER/step-model (with heads for scores),
FOLDER/strange-model (with a tokenizer of its own), the rows (sft.jsonl, preference.jsonl and others), prompts.jsonl and
rollouts.json. The content depends on nothing but this file.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from cases import GROUP

ROWS = 32
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
    _json_lines(folder / "even.jsonl", [_even(row) for row in rows])
    _json_lines(folder / "unpaired.jsonl", [_unpaired(number, row) for number, row in enumerate(rows)])
    prompts = [row["prompt"] for row in rows[: ROWS // 2]]
    _json_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    texts = [text for row in rows for text in row.values()]
    tokenizer = _tokenizer(texts, 400)
    strange = _tokenizer([text[::-1] for text in texts], 320)  # with other merges
    _write_models(folder, tokenizer, strange)
    _teach(folder / "strange-model", strange, [row["prompt"] + row["chosen"] for row in rows])
    shown = [{"prompt": row["prompt"], "privileged_context": row["chosen"]} for row in rows[: ROWS // 2]]
    _json_lines(folder / "demonstrations.jsonl", shown)
    _json_lines(folder / "stepwise.jsonl", [_stepwise(number, row) for number, row in enumerate(rows)])
    for name, even in (("rollouts.json", False), ("rollouts-even.json", True)):
        (folder / name).write_text(json.dumps(_rollouts(prompts, tokenizer, even)), encoding="utf-8")


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


def _unpaired(number: int, row: dict[str, str]) -> dict[str, Any]:
    """One answer of a preference row; two of three are good ones, and every step has both kinds."""
    good = number % 3 != 0
    return {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}


def _stepwise(number: int, row: dict[str, str]) -> dict[str, Any]:
    """The chosen answer in steps of four words; some are marked wrong."""
    words = row["chosen"].split()
    steps = [words[place : place + 4] for place in range(0, len(words), 4)]
    labels = [(number + place) % 3 != 1 for place in range(len(steps))]
    return {"prompt": row["prompt"], "completions": [f" {' '.join(step)}" for step in steps], "labels": labels}


def _even(row: dict[str, str]) -> dict[str, str]:
    """The same row with answers of equally many words, so that lengths do not decide which margin is the larger."""
    words = {role: row[role].split() for role in ("chosen", "rejected")}
    count = min(map(len, words.values()))
    return row | {role: "".join(f" {word}" for word in given[:count]) for role, given in words.items()}


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE of at most ``vocabulary`` tokens, with a start token that it adds itself, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _write_models(folder: Path, tokenizer: Any, strange: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

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
    models = {
        "model": LlamaForCausalLM,
        "reward-model": LlamaForSequenceClassification,
        "other-model": LlamaForCausalLM,
        "step-model": LlamaForTokenClassification,
        "strange-model": LlamaForCausalLM,
    }
    torch.manual_seed(3)
    for name, kind in models.items():
        config.num_labels = 2 if name == "step-model" else 1
        own = strange if name == "strange-model" else tokenizer
        config.vocab_size = len(own)
        kind(config).float().save_pretrained(folder / name)
        own.save_pretrained(folder / name)


def _teach(folder: Path, tokenizer: Any, texts: list[str]) -> None:
    """Train a model on ``texts``, so that what it says of several tokens together is not next to nothing."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (R, T), filled up with 0
    for _ in range(60):
        optimizer.zero_grad()
        model(batch, attention_mask=(batch != 0).long(), labels=batch.masked_fill(batch == 0, -100)).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def _rollouts(prompts: list[str], tokenizer: Any, even: bool) -> dict[str, list[list[int]]]:
    """Prompt's token ids, as text -> ``GROUP`` completions; most end with the stop token, some are cut off.

    ``even``: all have the greatest length, and end with the stop token.
    """
    source = random.Random(11)
    found = {}
    for prompt in prompts:
        completions = []
        for _ in range(GROUP):
            length = LONGEST if even else source.randint(2, LONGEST)
            ids = [source.randrange(len(_SPECIAL), len(tokenizer)) for _ in range(length)]
            if even or length < LONGEST:
                ids[-1] = tokenizer.eos_token_id
            completions.append(ids)
        found[key(tokenizer(prompt)["input_ids"])] = completions
    return found


def key(ids: list[int]) -> str:
    """How ``rollouts.json`` names a prompt."""
    return " ".join(map(str, ids))


def reward(text: str) -> float:
    """The verifiable reward of the online cases: the share of lower-case vowels, less 1e-5 for each character.

    The length makes no two completions of a prompt worth the same: equal ones are no pair, or TRL takes the first.
    """
    return sum(letter in "aeiou" for letter in text) / max(1, len(text)) - 1e-5 * len(text)


def _json_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
