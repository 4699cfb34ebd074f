"""Training by hand: the same parts that ``posttrain train`` puts together, in plain sight and without a run.

First some steps of a preference method: rows, tokens, network, reference, the method's loss, the core's reduction,
AdamW. Then some steps of a method that samples: completions, a reward, advantages, the same loss and reduction. A model
of 0.1 million parameters is made for it on the spot, so it takes seconds on a CPU:

    python examples/by_hand.py

Letters in shapes: B examples, R sequences, n trained tokens of all sequences, T those of the longest.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
from posttrain.catalogue import methods
from posttrain.contract.generation import Sampling
from posttrain.contract.pad import sequences_of
from posttrain.contract.rollout import Rollout, Rollouts
from posttrain.contract.views import Example, Step, Views
from posttrain.data import prepare, read_rows
from posttrain.generation.local.hf import HfGenerator
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.token_model import TokenModel, build_views
from posttrain.rewards import load_rewards, score
from posttrain.settings import Settings
from posttrain.training.micro_batches import build_batch, micro_batches
from posttrain.training.reduction import Averages, Totals, reduce_loss

#: Options are named as on the command line; functions take the section that they read.
SETTINGS = Settings(model="example", data=["example"], max_new_tokens=8, max_length=64, device="cpu")
LEARNING_RATE = 1e-3


@dataclass
class Parts:
    """What every step needs."""

    method: Any
    """A plugin, loaded by its name from the catalogue of what is installed."""
    config: Any
    """Its options."""
    policy: TokenModel
    """The network: sequences in, log-probs of their trained tokens out."""
    reference: TokenModel
    """A frozen copy of the network as it is now."""
    tokenizer: Any
    stop_ids: set[int]
    optimizer: torch.optim.Optimizer


def build(name: str, **options: Any) -> Parts:
    """Load a method and the example model, copy the reference, and build the optimiser."""
    method = methods.load(name)
    tokenizer = load_tokenizer(SETTINGS.model.model, SETTINGS.model)
    loaded = load_policy(SETTINGS.model.model, tokenizer, SETTINGS.model)
    policy = loaded.policy
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)
    return Parts(method, method.config(options), policy, reference, tokenizer, loaded.stop_ids, optimizer)


def read(parts: Parts) -> Any:
    """Read the example's rows in the form that the method takes, and tokenise them: a list of examples."""
    rows = read_rows(SETTINGS.data.data, parts.method.card.schemas, SETTINGS.data)
    return prepare(rows, parts.tokenizer, SETTINGS.data, parts.stop_ids, cache_dir=None)


def views(model: TokenModel, examples: list[Example]) -> Views:
    """Run the network: one view a role, with log-probs ``(B, T)`` and a mask ``(B, T)``."""
    flat = model(sequences_of(examples), TokenQuery())  # {"logps": (n,)}
    return build_views(examples, flat)


def step(parts: Parts, examples: list[Example], number: int, total: int) -> dict[str, float]:
    """Take one optimiser step over ``examples``; the gradient does not depend on how they are cut into passes."""
    totals = Totals.of(examples)  # denominators of the whole step, known before the first backward pass
    averages, loss_of_step = Averages(), 0.0
    parts.optimizer.zero_grad()
    for micro in micro_batches(examples, tokens=512, size=None, packed=parts.policy.packed):
        batch, masks = build_batch(micro, parts.policy.device)
        policy = views(parts.policy, micro)
        with torch.no_grad():
            reference = views(parts.reference, micro)
        for role, view in vars(policy).items():
            masks[role] = view.mask
            getattr(reference, role).mask = view.mask
        if parts.method.card.online:  # rollouts that serve one update: the sampler is the policy
            batch.columns["old_logps"] = policy.completion.logps.detach()
        returned = parts.method.loss(
            batch=batch, policy=policy, reference=reference, config=parts.config, step=Step(number, total)
        )
        loss, metrics = returned if isinstance(returned, tuple) else (returned, {})  # loss (B,), unreduced
        terms = loss if isinstance(loss, dict) else {"loss": loss}
        share, _ = reduce_loss(terms, masks, totals, len(micro), parts.method.name)
        share.backward()
        averages.add(metrics)
        loss_of_step += float(share.detach())
    torch.nn.utils.clip_grad_norm_(parts.policy.parameters(), 1.0)
    parts.optimizer.step()
    return {"loss": loss_of_step, **averages.result()}


def train_on_pairs(steps: int = 4, batch_size: int = 8) -> list[dict[str, float]]:
    """Train with dpo on the example's pairs, the same ones in every step so that the loss is seen to fall."""
    parts = build("dpo", beta=0.5)
    data = read(parts)
    examples = [data[index] for index in range(batch_size)]
    return [step(parts, examples, number, steps) for number in range(steps)]


def sample(parts: Parts, prompts: list[Example], group_size: int, number: int) -> list[Rollout]:
    """Complete every prompt ``group_size`` times and score the completions."""
    generator = HfGenerator(parts.policy.model, parts.tokenizer, parts.stop_ids, batch_size=64)
    ids = [prompt.sequences["prompt"][0].ids for prompt in prompts]  # (tokens,) each
    random_state = random.Random(number)
    seeds = [[random_state.getrandbits(32) for _ in range(group_size)] for _ in prompts]
    found = generator.generate(ids, Sampling(SETTINGS.data.max_new_tokens), seeds)
    rollouts = [
        Rollout(group, ids[group], completion, dict(prompts[group].columns))
        for group, completions in enumerate(found)
        for completion in completions
    ]
    rewards = load_rewards(["example"], {}, parts.tokenizer)
    columns = {name: [item.columns[name] for item in rollouts] for name in prompts[0].columns if name != "prompt"}
    asked, answers = [item.columns["prompt"] for item in rollouts], [item.completion.text for item in rollouts]
    total, _ = score(rewards, asked, answers, columns)  # (B,)
    for item, reward in zip(rollouts, total.tolist(), strict=True):
        item.reward = reward
    return rollouts


def learnt(parts: Parts, items: list[Rollout]) -> list[Example]:
    """Turn rollouts into examples that hold their advantages."""
    rewards = torch.tensor([item.reward for item in items])  # (B,)
    rollouts = Rollouts(items, compute=lambda model, full: [])  # this method asks for no log-probs in advance
    advantages, _ = parts.method.advantages_and_columns(
        rewards=rewards, rollouts=rollouts, config=parts.config, state={}
    )  # (B,)
    examples = [rollouts.example(row) for row in range(len(items))]
    for example, advantage in zip(examples, advantages.tolist(), strict=True):
        example.columns["advantages"] = advantage
    return examples


def train_on_samples(steps: int = 2, batch_size: int = 8, group_size: int = 8) -> list[dict[str, float]]:
    """Train with grpo on the example's prompts and its reward: 1 for digits in ascending order."""
    parts = build("grpo")
    data = read(parts)
    lines = []
    for number in range(steps):
        prompts = [data[number * batch_size + index] for index in range(batch_size)]
        items = sample(parts, prompts, group_size, number)
        line = step(parts, learnt(parts, items), number, steps)
        lines.append(line | {"reward": sum(item.reward for item in items) / len(items)})
    return lines


def main() -> None:
    """Run both and print a line a step."""
    for name, lines in (("dpo", train_on_pairs()), ("grpo", train_on_samples())):
        for number, line in enumerate(lines, 1):
            print(f"{name} step {number}:", "  ".join(f"{key} {value:.4f}" for key, value in line.items()))


if __name__ == "__main__":
    main()
