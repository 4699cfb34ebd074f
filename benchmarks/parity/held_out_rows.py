"""What both sides of ``held_out.py`` read: SmolLM2 and its teachers, and rows that a seed alone decides.

Sums of two numbers, with a right answer and a wrong one; for the method that samples, prompts with four answers of a
few words each. Rows are short, so that a step of a real model takes about a second on one core.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import cases
import material

STEPS = 100
LEARNING_RATE = 1e-5
SEEDS = (1, 2, 3)
HELD_OUT = 64
"""Sums that nothing is trained on."""
GROUPS = 32
"""Prompts with four answers each that nothing is trained on."""
ROWS = STEPS * cases.OFFLINE_BATCH
"""Sums of a seed: each once."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""SmolLM2's tokens for padding (here), start, stop and what is unknown."""
TEACHER_SEED = 0
"""The rows that the teachers are made with."""


def pairs(seed: int | None) -> list[dict[str, str]]:
    """Sums with a right and a wrong answer: those of ``seed``, or the held-out ones for None."""
    found = _sums()
    if seed is None:
        return found[:HELD_OUT]
    return random.Random(seed).sample(found[HELD_OUT:], ROWS)


@cache
def _sums() -> list[dict[str, str]]:
    source = random.Random(2024)
    numbers = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    source.shuffle(numbers)
    wrong = [a + b + source.choice((-10, -2, -1, 1, 2, 10)) for a, b in numbers]
    return [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(other)}
        for (a, b), other in zip(numbers, wrong, strict=True)
    ]


def groups(seed: int | None) -> list[tuple[str, list[str]]]:
    """Prompts, each with four answers that have rewards of their own: those of ``seed``, or the held-out ones."""
    source = random.Random("held out" if seed is None else seed)
    numbers = range(GROUPS) if seed is None else source.sample(range(GROUPS, 4000), STEPS * cases.ONLINE_PROMPTS)
    return [(f"The {source.choice(material.NOUNS)} {number}:", _answers(source)) for number in numbers]


def _answers(source: random.Random) -> list[str]:
    """One to three words each; no two of the same reward, which would be a group that teaches nothing of them."""
    found: dict[float, str] = {}
    while len(found) < cases.GROUP:
        count = source.randint(1, 3)
        text = "".join(f" {source.choice(material.NOUNS if place % 2 else material.VERBS)}" for place in range(count))
        found[material.reward(text)] = text
    return list(found.values())


def write_models(work: Path, source: str) -> None:
    """Write ``model``, and the teachers ``other-model`` and ``strange-model``, each once.

    Plain text is trained on, so the chat template goes; padding gets a token other than the stop token, which TRL's
    trainers would take for padding. The start token goes, too: the tokenizer adds none, and TRL's trainers of simpo and
    orpo would.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.chat_template = tokenizer.unk_token, None, None
    texts = [row["prompt"] + row["chosen"] for row in pairs(TEACHER_SEED)]
    for name in (name for name in ("model", "other-model") if not (work / name / "ready").exists()):
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)
        if name == "other-model":  # the form, and more of the sums than the student knows
            material.teach(work / name, tokenizer, _ended(texts[:32], tokenizer), rate=2e-5, steps=12)
        (work / name / "ready").touch()
    if not (work / "strange-model" / "ready").exists():
        _write_strange(work / "strange-model", texts)


def _write_strange(folder: Path, texts: list[str]) -> None:
    """A tiny teacher that knows sums by their form, with a tokenizer of other merges.

    Its special tokens have the student's names, by which TRL pairs them; posttrain pairs them by what they are for.
    """
    import torch
    from transformers import LlamaForCausalLM

    tokenizer, config = material.make_tokenizer([text[::-1] for text in texts], 320, SPECIAL), material.tiny_config()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(3)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    material.teach(folder, tokenizer, _ended(texts, tokenizer))
    (folder / "ready").touch()


def _ended(texts: list[str], tokenizer: Any) -> list[str]:
    """The texts with the stop token, of which a teacher has to know when it comes."""
    return [text + tokenizer.eos_token for text in texts]


def write_rows(work: Path, seed: int) -> Path:
    """Write the rows of ``seed``, in the order of the run, beside links to the models. Returns their folder."""
    from transformers import AutoTokenizer

    folder = work / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    for name in ("model", "other-model", "strange-model"):
        if not (folder / name).exists():
            (folder / name).symlink_to(work / name)
    rows, told = pairs(seed), groups(seed)
    material.json_lines(folder / "preference.jsonl", rows)
    material.json_lines(folder / "unpaired.jsonl", [material.unpaired(place, row) for place, row in enumerate(rows)])
    material.json_lines(folder / "sft.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows])
    material.json_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in told])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    stored = {
        material.key(tokenizer(prompt)["input_ids"]): [encoded(tokenizer, answer) for answer in answers]
        for prompt, answers in told
    }
    (folder / "rollouts.json").write_text(json.dumps(stored), encoding="utf-8")
    return folder


def encoded(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer, the stop token last."""
    return [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
