"""Advantage-weighted regression: supervised learning of own answers, the better ones exponentially more.

Paper: Peng et al. 2019, "Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning",
arXiv:1910.00177, equation 8 and section 5.

Loss in words: the best policy near the one that sampled has probabilities in proportion to exp(A / beta); imitating
the samples with that weight approaches it. What is to be expected of a prompt, V, is the mean reward of its group:

    weight = min(exp((R - V) / beta), max_weight)
    loss = -weight * log p(token),   averaged over all tokens of the step

Nothing is lowered, good answers only rise faster than others, so it can be used on samples of any policy.

Differs from the paper: V is the group's mean and not a value network; where the data have a column
``expected_reward``, it is that. There is no replay buffer. ``aggregation`` "sequence" averages over an answer's
tokens, then over answers.

Metrics:
- weight: mean weight. 1 or a little above; far above, beta is too small for the rewards.
- effective_share: square of the step's mean weight over the mean of its squares. Near 1 / batch few answers decide
  all.
- nll: negative log-probability of a token in nats. Falls.
- entropy: of the next-token distribution in nats. Falls; below 0.01 the policy has stopped exploring."""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Temperature of the weights (the paper; 1 for rewards that are scaled to a deviation of 1)."""
    max_weight: float = 20.0
    """Largest weight (the paper, section 5)."""
    aggregation: Literal["token", "sequence"] = "token"
    """Average over all tokens of the step, or over an answer's tokens, then answers."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The weight of each answer, and how evenly they are spread: (B,)."""
    given = rollouts.columns.get("expected_reward")
    expected = tensors.group_mean(rewards, rollouts.group) if given is None else torch.as_tensor(given).to(rewards)
    exponent = torch.clamp((rewards - expected) / config.beta, max=50.0)
    weight = exponent.exp().clamp(max=config.max_weight).nan_to_num(0.0)  # NaN: it has no reward
    share = weight.mean().square() / weight.square().mean().clamp(min=1e-12)
    return {"advantages": weight, "effective_share": share.expand_as(weight)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Weighted negative log-probability."""
    view = policy.completion
    loss = -batch.advantages.reshape(len(view.logps), -1) * view.logps  # (B, T)
    return PerToken(loss, view.mask) if config.aggregation == "token" else view.mean_of(loss), {
        "weight": batch.advantages,
        "effective_share": batch.effective_share,
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
