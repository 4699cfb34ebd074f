"""Statistical rejection sampling optimisation: answers are accepted as if the optimal policy had given them.

Paper: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv:2309.06657, algorithm
1 and section 3.3.

Loss in words: preference losses want pairs from the policy that they lead to, p_ref exp(R / beta). The reference gives
candidates; one is accepted with the probability exp((R - R_max) / beta), R_max the largest reward of those that are
left, until ``keep`` are accepted. Accepted answers are paired in turn and ordered by their rewards. The loss is the
hinge of the margin of log-ratios, normalised by gamma:

    loss = max(0, 1 - gamma * [(log p - log p_ref)(better) - (log p - log p_ref)(other)])

Differs from the paper: candidates are sampled while the policy trains, and not once before. Pairs whose rewards are
the same teach nothing.

Metrics:
- margin: normalised margin. From 0 to above 1, where the hinge ends.
- reward_gap: mean difference of rewards within a pair.
- accuracy: share of decided pairs with a positive margin. 0.5 at the start, then 0.5 to 0.8.
- decided: share of pairs that teach something. Below 0.2 the rewards hardly tell answers apart.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import Ask, Selection, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options."""

    temperature_of_rewards: float = 0.5
    """beta of the acceptance: small accepts the best alone, large everything (the paper)."""
    gamma: float = 0.05
    """Scale of the margin (the paper)."""
    keep: int = 8
    """Answers that are accepted of a prompt (the paper: 8 of 64)."""
    shape: Literal["hinge", "sigmoid"] = "hinge"
    """Loss of the margin: hinge, the paper's best, or that of DPO."""

    def __post_init__(self) -> None:
        if self.temperature_of_rewards <= 0 or self.keep < 2:
            raise ValueError(
                f"temperature_of_rewards is {self.temperature_of_rewards} and keep {self.keep}, expected above 0 and 2"
            )


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """The reference gives the candidates."""
    return [[Ask(group_size, source="reference")] for _ in prompts]


@hookimpl
def posttrain_select(rollouts, rewards, config, state):
    """Pairs of accepted candidates, the better one first; a resumed run draws the same ones."""
    state["draws"] = state.get("draws", 0) + 1
    generator = torch.Generator().manual_seed(state["draws"])
    pairs = []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0].tolist()
        kept = _accepted(rows, rewards, config, generator)
        pairs += [(kept[i], kept[i + 1]) for i in range(0, len(kept) - 1, 2)]
    ordered = [(a, b) if rewards[a] >= rewards[b] else (b, a) for a, b in pairs]
    gap = torch.tensor([float(rewards[a] - rewards[b]) for a, b in ordered], dtype=torch.float64)  # (P,)
    return Selection(pairs=ordered, columns={"decided": (gap > 0).double(), "reward_gap": gap})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Hinge, or logistic loss, of each pair's normalised margin."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    margin = config.gamma * (log_ratio_chosen - log_ratio_rejected)
    decided = batch.decided.to(margin.dtype)
    unknown = torch.full_like(margin, torch.nan)
    loss = torch.relu(1 - margin) if config.shape == "hinge" else -logsigmoid(margin)
    return loss * decided, {
        "margin": margin.detach(),
        "accuracy": torch.where(decided > 0, (margin > 0).to(margin.dtype), unknown),
        "decided": decided,
        "reward_gap": batch.reward_gap,
    }


def _accepted(rows: list[int], rewards: torch.Tensor, config: Config, generator: torch.Generator) -> list[int]:
    """Up to ``keep`` of ``rows``, in the order in which they are accepted."""
    kept, left = [], list(rows)
    while left and len(kept) < config.keep:
        top = max(float(rewards[row]) for row in left)
        for row in list(left):
            chance = torch.tensor((float(rewards[row]) - top) / config.temperature_of_rewards).exp()
            if len(kept) < config.keep and torch.rand((), generator=generator) <= chance:
                kept.append(row)
                left.remove(row)
    return kept
