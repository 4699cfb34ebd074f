"""Teach a small model to use tools: by imitation first (sft), then by trial in an environment (grpo, rloo, ppo, dapo).

The environment is the calculator that comes with posttrain: two tools, worth half a point for the right one and half
for the right answer. Three of ten demonstrations call the wrong tool, so imitation learns to call it as often;
reinforcement learning mends that, and no method has a line about tools.

    python examples/tools.py                 about three minutes on two processor cores, nothing is downloaded
    python examples/tools.py --methods ppo   another method
"""

from __future__ import annotations

import argparse
import copy
import random
from typing import Any

import posttrain
import torch
from posttrain.environments.calculator import Calculator
from posttrain.environments.environment import tools_of
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

METHODS = ("grpo", "rloo", "ppo", "dapo")
#: Pieces that are one token each: the model is small, and need not learn to spell them.
PIECES = (
    *("<|user|>", "<|tool|>", "<|model|>", "<|end|>", "<tool_call>", "</tool_call>"),
    *('{"name": "', '", "arguments": {"a": ', ', "b": ', "}}", "add", "multiply", "What is ", " plus ", " times ", "?"),
)
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}{% for m in messages %}"
    "{{ {'user': '<|user|>', 'tool': '<|tool|>', 'assistant': '<|model|>'}[m.role] }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|model|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces, digits and little else."""
    words = ["<pad>", "<unk>", *PIECES, *"0123456789.-"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    alternatives = "|".join("".join("\\" + c if not c.isalnum() else c for c in piece) for piece in PIECES)
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(f"{alternatives}|[\\s\\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **special)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.2 million parameters with random weights."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **ids))


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as the environment makes them, with small numbers."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        first, second, adds = dice.randint(1, 99), dice.randint(1, 99), dice.random() < 0.5
        text = f"What is {first} {'plus' if adds else 'times'} {second}?"
        answer = str(first + second if adds else first * second)
        numbers = {"a": first, "b": second}
        rows.append({"prompt": [{"role": "user", "content": text}], "answer": answer, "numbers": numbers})
        rows[-1]["tool"] = "add" if adds else "multiply"
    return rows


def demonstration(row: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """A conversation that calls one of the two tools, the right one in seven of ten, and repeats what it says."""
    other = {"add": "multiply", "multiply": "add"}
    name = row["tool"] if dice.random() < 0.7 else other[row["tool"]]
    first, second = row["numbers"]["a"], row["numbers"]["b"]
    result = str(first + second if name == "add" else first * second)
    call = {"type": "function", "function": {"name": name, "arguments": row["numbers"]}}
    talk = [
        *row["prompt"],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": result},
        {"role": "assistant", "content": result},
    ]
    return {"messages": talk, "tools": tools_of(Calculator())}


def evaluate(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean reward of sampled episodes on held-out questions, with transformers alone."""
    model.eval()
    torch.manual_seed(0)
    total = 0.0
    for row in rows:
        game, talk = Calculator(), list(row["prompt"])
        game.reset(row, 0)
        for _ in range(3):
            ids = tokenizer.apply_chat_template(
                talk, tools=tools_of(game), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            made = model.generate(ids, max_new_tokens=24, do_sample=True, pad_token_id=0)[0, ids.shape[1] :]
            said = read(tokenizer.decode(made).partition("<|end|>")[0])
            found = game.step(said)
            if found.done:
                total += found.reward or 0.0
                break
            talk += [said, *found.messages]
    return total / len(rows)


def read(text: str) -> dict[str, Any]:
    """The message that the model wrote."""
    from posttrain.environments.parsing import parse, parser_of

    return parse(text, parser_of("<tool_call>"))


def main(arguments: list[str] | None = None) -> int:
    """Run the example; 0 if every method raised the held-out reward (or ``--quick``), else 1."""
    options = _options(arguments)
    torch.set_num_threads(1)  # a model this small loses time when several threads share its work
    logging.disable_progress_bar()
    rows, held_out = questions(4000, options.seed), questions(100, options.seed + 1)
    tokenizer = make_tokenizer()
    run = posttrain.train(
        "sft",
        model=make_model(tokenizer, options.seed),
        tokenizer=tokenizer,
        data=[demonstration(row, random.Random(place)) for place, row in enumerate(rows)],
        steps=5 if options.quick else 500,
        batch_size=64,
        learning_rate=3e-3,
        warmup_steps=20,
        cache="off",
        output=f"{options.output}/sft",
        overwrite=True,
        log_every=100,
    )
    before = evaluate(run.model, tokenizer, held_out)
    print(f"After imitation: {before:.2f} of 1 on {len(held_out)} held-out questions")
    better = True
    for method in options.methods:
        found = posttrain.train(
            method,
            model=copy.deepcopy(run.model),
            tokenizer=tokenizer,
            environment=Calculator,
            data=rows,
            steps=2 if options.quick else 40,
            batch_size=32,
            generation_batch_size=256,
            group_size=8,
            max_new_tokens=24,
            learning_rate=3e-4,
            cache="off",
            output=f"{options.output}/{method}",
            overwrite=True,
            log_every=10,
        )
        after = evaluate(found.model, tokenizer, held_out)
        print(f"{method}: {before:.2f} -> {after:.2f}   Episodes: {found.path}/episodes.jsonl")
        better = better and after > before + 0.2
    return 0 if better or options.quick else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to try [all four]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/tools", help="folder of the run directories [runs/tools]")
    parser.add_argument("--quick", action="store_true", help="only a few steps, to see that everything works")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
