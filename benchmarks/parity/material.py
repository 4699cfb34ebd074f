"""What both sides get: a tiny Llama, its tokenizer, rows of unlike lengths, and sampled completions that are fixed.

    python benchmarks/parity/material.py FOLDER

writes FOLDER/model, FOLDER/other-model, FOLDER/reward-model and FOLDER/step-model (with heads for scores),
FOLDER/strange-model (with a tokenizer of its own), FOLDER/images-model and FOLDER/experts-model, pictures, the rows
(sft.jsonl, preference.jsonl and others), prompts.jsonl and rollouts.json. The content depends on nothing but this file.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import GROUP

ROWS = 32
LONGEST = 24
"""Tokens of the longest completion of an online method."""
NOUNS = ["river", "stone", "window", "garden", "letter", "engine", "market", "winter", "singer", "bridge", "orchard"]
VERBS = ["finds", "carries", "paints", "follows", "opens", "mends", "counts", "watches"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def write(folder: Path) -> None:
    """Write everything into ``folder``."""
    rows = _rows()
    json_lines(folder / "sft.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])
    json_lines(folder / "preference.jsonl", rows)
    json_lines(folder / "even.jsonl", [_even(row) for row in rows])
    json_lines(folder / "unpaired.jsonl", [unpaired(number, row) for number, row in enumerate(rows)])
    prompts = [row["prompt"] for row in rows[: ROWS // 2]]
    json_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    texts = [text for row in rows for text in row.values()]
    tokenizer = make_tokenizer(texts, 400)
    strange = make_tokenizer([text[::-1] for text in texts], 320)  # with other merges
    _write_models(folder, tokenizer, strange)
    teach(folder / "strange-model", strange, [row["prompt"] + row["chosen"] for row in rows])
    shown = [{"prompt": row["prompt"], "privileged_context": row["chosen"]} for row in rows[: ROWS // 2]]
    json_lines(folder / "demonstrations.jsonl", shown)
    json_lines(folder / "stepwise.jsonl", [_stepwise(number, row) for number, row in enumerate(rows)])
    _write_experts(folder / "experts-model", tokenizer)
    _write_images(folder, rows)
    for name, even in (("rollouts.json", False), ("rollouts-even.json", True)):
        (folder / name).write_text(json.dumps(_rollouts(prompts, tokenizer, even)), encoding="utf-8")


def _rows() -> list[dict[str, str]]:
    """Preference rows whose answers have 1 to 26 words."""
    source = random.Random(7)

    def words(count: int) -> str:
        return "".join(f" {source.choice(NOUNS if place % 2 else VERBS)}" for place in range(count))

    rows = []
    for number in range(ROWS):
        prompt = f"Line {number}: the {source.choice(NOUNS)}{words(source.randint(1, 12))}:"
        rows.append(
            {"prompt": prompt, "chosen": words(source.randint(1, 26)), "rejected": words(source.randint(1, 26))}
        )
    return rows


def unpaired(number: int, row: dict[str, str]) -> dict[str, Any]:
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


def make_tokenizer(texts: list[str], vocabulary: int, special: Sequence[str] = _SPECIAL) -> Any:
    """A byte-level BPE of at most ``vocabulary`` tokens, with a start token that it adds itself, as Llama's does.

    ``special``: its tokens for padding, start, stop and what is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    padding, start, stop, unknown = special
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=padding, bos_token=start, eos_token=stop, unk_token=unknown
    )


#: Sizes of every model here but those with images.
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}


def tiny_config() -> Any:
    """A Llama of two layers; the size of its vocabulary is left to set."""
    from transformers import LlamaConfig

    return LlamaConfig(**_SIZES, intermediate_size=128, tie_word_embeddings=True, num_labels=1)


def _write_models(folder: Path, tokenizer: Any, strange: Any) -> None:
    import torch
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaForTokenClassification

    config = tiny_config()
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


def _write_experts(folder: Path, tokenizer: Any) -> None:
    """A Mixtral of four experts, two of which read each token; its configuration asks for the router loss."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(3)
    config = MixtralConfig(
        **_SIZES,
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        output_router_logits=True,
        sliding_window=None,
    )
    MixtralForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


#: A template that ends with the stop token: TRL would learn what stands behind it.
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _write_images(folder: Path, rows: list[dict[str, str]]) -> None:
    """A LLaVA with the processor of its family, conversations with one picture or two, and completions of prompts."""
    from posttrain_testkit.tiny_vision import answered, picture, tiny_vision

    model, processor = tiny_vision("llava", seed=3, initializer_range=0.1)
    processor.chat_template = processor.tokenizer.chat_template = _TEMPLATE
    model.save_pretrained(folder / "images-model")
    processor.save_pretrained(folder / "images-model")
    (folder / "pictures").mkdir()
    shown = []
    for number, row in enumerate(rows):
        names = [str(folder / "pictures" / f"{number % 5}-{place}.png") for place in range(1 + number % 2)]
        for place, name in enumerate(names):
            picture(10 * (number % 5) + place).save(name)
        answers = {role: [answered(row[role].lower()[:40])] for role in ("chosen", "rejected")}
        shown.append({"prompt": [{"role": "user", "content": row["prompt"].lower()}], **answers, "images": names})
    sft = [{"prompt": r["prompt"], "completion": r["chosen"], "images": r["images"]} for r in shown]
    prompts = [{"prompt": r["prompt"], "images": r["images"]} for r in shown[: ROWS // 2]]
    for name, found in (("preference", shown), ("sft", sft), ("prompts", prompts)):
        json_lines(folder / f"{name}-images.jsonl", found)
    texts = [prompt_with_images(row, processor) for row in prompts]
    stored = _rollouts(texts, processor.tokenizer, first=5)  # no placeholder is sampled
    (folder / "rollouts-images.json").write_text(json.dumps(stored), encoding="utf-8")


def prompt_with_images(row: dict[str, Any], processor: Any) -> str:
    """A prompt as the template writes it, with as many placeholders as the processor gives its pictures."""
    import PIL.Image

    parts = [{"type": "image"} for _ in row["images"]] + [{"type": "text", "text": row["prompt"][0]["content"]}]
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    opened = [PIL.Image.open(name) for name in row["images"]]
    return processor.tokenizer.decode(processor(text=[text], images=[opened])["input_ids"][0])


def teach(folder: Path, tokenizer: Any, texts: list[str], rate: float = 3e-3, steps: int = 60) -> None:
    """Train a model on ``texts``, so that what it says of several tokens together is not next to nothing."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype="float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (R, T), filled up with 0
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch, attention_mask=(batch != 0).long(), labels=batch.masked_fill(batch == 0, -100)).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def _rollouts(prompts: list[str], tokenizer: Any, even: bool = False, first: int = 4) -> dict[str, list[list[int]]]:
    """Prompt's token ids, as text -> ``GROUP`` completions; most end with the stop token, some are cut off.

    ``even``: all have the greatest length, and end with the stop token. ``first``: the smallest id that is no special
    token.
    """
    source = random.Random(11)
    found = {}
    for prompt in prompts:
        completions = []
        for _ in range(GROUP):
            length = LONGEST if even else source.randint(2, LONGEST)
            ids = [source.randrange(first, len(tokenizer)) for _ in range(length)]
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


def json_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
