"""Anomalies planted in real runs of a tiny model, one for each rule: what the rule says, and in which step.

python -m benchmarks.rules.plants            a table
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import posttrain
import torch
from posttrain import hookimpl
from posttrain.assembly import build
from posttrain.errors import RunStopped
from posttrain.generation.local.hf import HfGenerator
from posttrain.runs import facts
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

PROMPTS = ["ab", "abc", "a", "abcd", "bc", "dcba", "c", "bad"]
ONLINE = [{"prompt": prompt} for prompt in PROMPTS]
IMITATED = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(PROMPTS, "abcdabcd", strict=True)]
PAIRS = [{"prompt": p, "chosen": "ab"[: 1 + i % 2], "rejected": "ab"[i % 2 :]} for i, p in enumerate(PROMPTS)]
USUAL = {"progress": "quiet", "cache": "off", "device": "cpu", "batch_size": 2, "schedule": "constant"}
ROLLOUTS = {"group_size": 4, "max_new_tokens": 6, "learning_rate": 1e-3}


@dataclass
class Planted:
    """A run with a fault: method, options, what acts on it, and the step in which the rule must speak."""

    code: str
    what: str
    method: str
    steps: int
    at: int
    """The step of the alert; 0 where it depends on how training goes."""
    options: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], Any] = tiny_model
    around: Callable[[], Any] = nullcontext


def train(planted: Planted, folder: Path) -> Path:
    """Make the run in ``folder``; one that an alert stops is a run too."""
    online = planted.method in ("grpo", "rloo")
    usual = USUAL | (ROLLOUTS | {"reward": count_of_a, "data": ONLINE} if online else {"data": IMITATED})
    own = {"model": planted.model(), "tokenizer": tiny_tokenizer(), "output": str(folder), "steps": planted.steps}
    if "chat_template" in planted.options:
        file = folder.with_suffix(".jinja")
        file.write_text(planted.options["chat_template"], encoding="utf-8")
        own["chat_template"] = str(file)
    with planted.around(), suppress(RunStopped):
        posttrain.train(planted.method, **(usual | planted.options | own))
    return folder


def found(planted: Planted, folder: Path) -> dict[str, Any] | None:
    """The alert of the planted fault."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    alerts = [event for event in map(json.loads, lines) if event["kind"] == "alert"]
    return next((alert for alert in alerts if alert["code"] == planted.code), None)


class After:
    """Does something to the model after a step."""

    def __init__(self, step: int, act: Callable[[Any], None]):
        self.step, self.act = step, act

    @hookimpl
    def posttrain_step_done(self, run, step):
        if step == self.step:
            with torch.no_grad():
                self.act(run.model)


def taught(answers: list[str]) -> Callable[[], Any]:
    """A tiny model that has learnt to answer the prompts so, whatever they are."""
    return lambda: copy.deepcopy(_taught(tuple(answers)))


@functools.cache
def _taught(answers: tuple[str, ...]) -> Any:
    model = tiny_model()
    rows = [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, answers, strict=True)]
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        options = USUAL | {"batch_size": 8, "learning_rate": 1e-2, "steps": 60, "rules": {"all": "off"}}
        posttrain.train("sft", model=model, tokenizer=tiny_tokenizer(), data=rows, output=f"{folder}/run", **options)
    return model


one_text = taught(["a" * 30] * 8)


def copy_of(make: Callable[[], Any]) -> Callable[[Any], None]:
    """Give a model the weights of another one."""
    return lambda model: model.load_state_dict(make().state_dict())


def scale_head(factor: float) -> Callable[[Any], None]:
    return lambda model: model.lm_head.weight.mul_(factor)


def constant(value: float) -> Callable[..., list[float]]:
    return lambda prompts, completions: [value] * len(completions)


def fading() -> Callable[..., list[float]]:
    """A reward that hardly tells answers apart after ten steps."""
    calls = iter(range(10_000))

    def reward(prompts, completions):
        scale = 1.0 if next(calls) < 10 else 0.01
        return [scale * text.count("a") for text in completions]

    return reward


def by_chance() -> Callable[..., list[float]]:
    """A reward that has nothing to do with the answers."""
    chance = random.Random(0)
    return lambda prompts, completions: [chance.random() for _ in completions]


def seldom(prompts, completions):
    """A reward that cannot judge half of the prompts."""
    return [None if len(prompt) % 2 else float(text.count("a")) for prompt, text in zip(prompts, completions)]  # noqa: B905


def slow(prompts, completions):
    time.sleep(0.08)
    return [float(text.count("a")) for text in completions]


class Noisy(HfGenerator):
    """A sampler whose log-probs are off."""

    size, every = 0.5, 1

    def __init__(self, compute):
        super().__init__(compute.policy.model, compute.tokenizer, compute.stop_ids, 64)

    def generate(self, prompts, sampling, seeds, images=None):
        groups = super().generate(prompts, sampling, seeds)
        return [[self._off(one) for one in group] for group in groups]

    def _off(self, one):
        noise = torch.zeros_like(one.logps)
        noise[:: self.every] = -self.size
        return replace(one, logps=one.logps + noise)


class Wild(Noisy):
    """A sampler that thinks one token in a few much less likely than it is."""

    size, every = 4.0, 5


def sampler(kind: type) -> Callable[[], Any]:
    return lambda: patch.object(build, "make_generator", lambda compute, directory: kind(compute))


def small_machine() -> Any:
    """A machine with hardly more memory than the process has."""
    return patch.object(facts, "memory_limit_mb", lambda device: facts.peak_memory_mb() * 1.001)


def rounded() -> Any:
    return tiny_model(dtype=torch.bfloat16)


def break_letter(model: Any) -> None:
    """Let the letter h be infinite after the embedding from now on, as after a fault of a kernel."""
    letter = tiny_tokenizer().convert_tokens_to_ids("h")

    def hook(module, inputs, output):
        return output.masked_fill((inputs[0] == letter)[..., None], float("inf"))

    model.model.embed_tokens.register_forward_hook(hook)


#: Marks who speaks, as templates of chat models do.
CHAT = "{% for message in messages %}g{{ message['content'] }}h{% endfor %}{% if add_generation_prompt %}g{% endif %}"
#: Asks for an answer with a letter that no answer begins with.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}h{% endif %}"
#: On whatever machine, and however busy it is.
WAITS = {"low-utilisation.seconds": "0.01", "low-utilisation.reward": "0.02"}
MESSAGES = [
    {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "a"}]} for prompt in PROMPTS
]


def plants() -> list[Planted]:
    """Every rule that a tiny run can show, with its fault."""
    return [
        Planted("plain-prompts", "a chat model is given plain text", "grpo", 1, 1, {"chat_template": CHAT}),
        Planted(
            "template-mismatch", "a template that asks otherwise than it answers", "sft", 1, 1,
            {"data": MESSAGES, "chat_template": TEMPLATE, "train_on": "completion"},
        ),
        Planted("empty-completions", "a model that has learnt to be silent", "grpo", 1, 1, {"chat_template": CHAT},
                taught([" "] * 8)),
        Planted("dead-reward", "a reward that is always 0", "grpo", 2, 2, {"reward": constant(0.0)}),
        Planted("no-signal", "a reward that is always 1", "grpo", 5, 5, {"reward": constant(1.0)}),
        Planted("spread-collapse", "a reward that hardly tells answers apart from step 11 on", "grpo", 24, 20,
                {"reward": fading()}),
        Planted("gradient-spike", "the head is scaled by 40 after step 25", "sft", 26, 26,
                {"observers": [After(25, scale_head(40.0))], "learning_rate": 1e-4, "batch_size": 8}),
        Planted("loss-divergence", "a learning rate of 3", "sft", 40, 0, {"learning_rate": 3.0}),
        Planted("learning-rate-zero", "a learning rate of 0", "sft", 2, 2, {"learning_rate": 0.0}),
        Planted("unmoved-parameters", "bfloat16 weights and a learning rate of 1e-9", "sft", 3, 3,
                {"learning_rate": 1e-9}, rounded),
        Planted("sampler-mismatch", "the sampler's log-probs are off by 0.5", "grpo", 3, 3, {},
                around=sampler(Noisy)),
        Planted("low-effective-sample", "the sampler's log-probs of one token in five are off by 4", "grpo", 3, 3, {},
                around=sampler(Wild)),
        Planted("prompts-lost", "a reward that cannot judge half of the prompts", "grpo", 3, 3,
                {"reward": seldom, "batch_size": 8}),
        Planted("entropy-collapse", "the head is scaled by 60 after step 10", "grpo", 24, 20,
                {"reward": by_chance(), "observers": [After(10, scale_head(60.0))], "learning_rate": 1e-5}),
        Planted("divergence", "a learning rate of 0.1", "grpo", 20, 0, {"learning_rate": 0.1}),
        Planted("clip-saturation", "a learning rate of 0.05 over eight updates a batch", "grpo", 40, 0,
                {"learning_rate": 0.05, "updates_per_rollout": 8}),
        Planted("out-of-range", "pairs that contradict each other and a learning rate of 0.3", "dpo", 30, 0,
                {"data": PAIRS, "learning_rate": 0.3}),
        Planted("repeated-completions", "a model that knows one text", "grpo", 5, 5,
                {"reward": by_chance(), "learning_rate": 1e-6, "max_new_tokens": 4}, one_text),
        Planted("degenerate-text", "a model that repeats a letter", "grpo", 3, 3,
                {"max_new_tokens": 20, "learning_rate": 1e-6}, one_text),
        Planted("length-saturation", "answers of 30 letters where 4 tokens are allowed", "grpo", 10, 10,
                {"max_new_tokens": 4, "learning_rate": 1e-6}, one_text),
        Planted("length-drift", "short answers become long ones after step 10", "grpo", 24, 0,
                {"reward": by_chance(), "max_new_tokens": 28, "learning_rate": 1e-6,
                 "observers": [After(10, copy_of(one_text))]}, taught(["b"] * 8)),
        Planted("overfitting", "two rows, and held-out rows of the same kind", "sft", 60, 0,
                {"data": IMITATED[:2], "eval_data": IMITATED[2:], "eval_every": 3, "learning_rate": 3e-3}),
        Planted("evaluation-worse", "held-out rows that the training rows contradict", "sft", 12, 0,
                {"eval_data": [row | {"completion": "hhgg"} for row in IMITATED], "eval_every": 3,
                 "learning_rate": 1e-2}),
        Planted("memory-near-limit", "a machine with hardly more memory than the process takes", "sft", 10, 10, {},
                around=small_machine),
        Planted("low-utilisation", "a reward that sleeps", "grpo", 20, 20,
                {"reward": slow, "rule_options": WAITS}),
        Planted("nan-origin", "the letter h is infinite after the embedding from step 3 on", "sft", 8, 3,
                {"data": [*IMITATED[:7], {"prompt": "abh", "completion": "a"}], "batch_size": 8,
                 "observers": [After(2, break_letter)]}),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="codes of rules")
    parser.add_argument("--output", type=Path, help="JSON file of the table")
    options = parser.parse_args()
    rows = []
    for planted in plants():
        if options.only and planted.code not in options.only:
            continue
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            alert = found(planted, train(planted, Path(folder) / "run"))
        step, message = (alert["evidence"]["step"], alert["message"]) if alert else (None, "NO ALERT")
        suggestion = alert["suggestion"] if alert else ""
        rows.append({"code": planted.code, "planted": planted.what, "step": step, "message": message,
                     "suggestion": suggestion})  # fmt: skip
        print(f"{planted.code:<22} {step!s:>4}  {message}  ->  {suggestion}  ({time.monotonic() - begun:.1f} s)")
    if options.output:
        options.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
