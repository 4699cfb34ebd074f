"""PF-PPO: rewards in the middle are the least reliable; completions are drawn anew, the telling ones more often.

Paper: Shen and Zhang 2024, "Policy Filtration in RLHF to Fine-Tune LLM for Code Generation", arXiv:2409.06957; the
weights as in verl.

Loss in words: a reward model is right about what it finds very good or very bad, and noisy between. So the completions
of a step are drawn anew, as many as there were, with replacement, each with a probability in proportion to its weight:

    pow: |R|^power      max_min: 1 for the largest and the smallest reward of the step, else 0
    max_random: 0.4 for the largest reward of the step, 0.1 for the others

What a drawn completion is worth was decided before: its reward less its group's mean, in standard deviations. The
clipped policy gradient is averaged over all tokens of those drawn.

Differs from the paper: the paper has PPO with a value network; the advantages are GRPO's here, which need none. Its
filters rank within a prompt, verl's weigh over the step.

Metrics:
- probability: with which a drawn completion was drawn. About one over their number where nothing is preferred.
- distinct: share of different completions among those drawn. 0.63 where all weights are equal; near 0 few decide all.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from posttrain import Selection, hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    filter: Literal["pow", "max_min", "max_random"] = "pow"
    """How rewards become weights (verl)."""
    power: float = 2.0
    """Exponent of the reward for "pow" (verl)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_select(rollouts, rewards, config, state):
    """As many completions as there are, drawn with replacement; a resumed run draws the same ones."""
    advantages, chances = (
        tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon),
        _chances(rewards, config),
    )
    state["draws"] = state.get("draws", 0) + 1
    generator = torch.Generator().manual_seed(state["draws"])
    drawn = torch.multinomial(chances, len(rewards), replacement=True, generator=generator).tolist()
    share = len(set(drawn)) / len(drawn)
    return Selection([
        replace(item, columns=item.columns | {"drawn": [float(advantages[row]), float(chances[row]), share]})
        for row in drawn
        for item in [rollouts.items[row]]
    ])  # fmt: skip


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """What each completion was worth before the draw: (B,)."""
    plain = zip(
        tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon).tolist(),
        _chances(rewards, config).tolist(),
        strict=True,
    )
    drawn = rollouts.columns.get("drawn") or [[worth, chance, 1.0] for worth, chance in plain]
    advantages, chances, distinct = rewards.new_tensor(drawn).unbind(1)  # (B,) each
    return {"advantages": advantages, "probability": chances, "distinct": distinct}


def _chances(rewards: torch.Tensor, config: Config) -> torch.Tensor:
    """Probabilities (B,) of being drawn."""
    if config.filter == "pow":
        weights = rewards.abs() ** config.power
    elif config.filter == "max_min":
        weights = ((rewards == rewards.max()) | (rewards == rewards.min())).to(rewards.dtype)
    else:
        weights = torch.where(rewards == rewards.max(), 0.4, 0.1).to(rewards.dtype)
    weights = weights + 1e-8
    return weights / weights.sum()


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("probability", "distinct"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
