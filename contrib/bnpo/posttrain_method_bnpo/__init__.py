"""Beta normalisation policy optimisation: advantages are divided by a Beta density fitted to the step's success rates.

Paper: Xiao et al. 2025, "BNPO: Beta Normalization Policy Optimization", arXiv:2506.02864; details as in the authors'
code.

Loss in words: what a completion is worth is its reward less its group's mean p, an estimate of the prompt's success
rate. How such a difference should be scaled depends on how the success rates of the prompts are spread, which changes
as the policy learns. So a Beta distribution is fitted to the means of the step's groups, by their mean m and variance
v, and the advantage is divided by the density of a sharper one at p, of the form that has the least variance:

    k = m (1 - m) / v - 1,   alpha = max(1 + m k / 3, 1),   beta = max(1 + (1 - m) k / 3, 1)
    A = (R - p) / Beta(p; alpha, beta)

With alpha and beta 1 this is REINFORCE with a group baseline, with 3/2 GRPO up to a constant. The clipped policy
gradient with it is summed over a completion's tokens, then averaged over completions.

Differs from the paper: rewards lie between min_reward and max_reward, to which p is also held. A step whose groups all
have one mean has alpha and beta 1. The name also stands for an aggregation in TRL, which is another thing.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- alpha, beta: parameters of the density. 1: rates are spread evenly; large: all prompts are about as hard.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    min_reward: float = 0.0
    """Smallest reward (the authors' code)."""
    max_reward: float = 1.0
    """Largest reward (the authors' code)."""
    variance: Literal["sample", "population"] = "sample"
    """Divisor n - 1 (the authors' code) or n in the variance of the success rates."""
    aggregation: Literal["sum", "token"] = "sum"
    """Sum over a completion's tokens (the authors' script), or mean over all tokens of the step."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (the authors' script)."""

    def __post_init__(self) -> None:
        if self.max_reward <= self.min_reward:
            raise ValueError(f"max_reward is {self.max_reward}, expected a number above min_reward, {self.min_reward}")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, divided by a density fitted to these means: (B,)."""
    scaled = (rewards - config.min_reward) / (config.max_reward - config.min_reward)
    rate = tensors.group_mean(scaled, rollouts.group)  # (B,)
    rates = torch.stack([rate[rollouts.group == one][0] for one in rollouts.group.unique()])
    alpha, beta = _fit(rates[~rates.isnan()].clamp(0, 1), config.variance == "sample")
    density = torch.distributions.Beta(alpha, beta, validate_args=False).log_prob(rate.clamp(0, 1)).exp()
    weight = (1 / density).clamp(max=1e6)  # at a rate of 0 or 1 all rewards are equal
    columns = {"alpha": alpha.expand_as(rewards), "beta": beta.expand_as(rewards)}
    return {"advantages": ((scaled - rate) * weight).nan_to_num(0.0), **columns}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon_low, config.epsilon_high)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {"alpha": batch.alpha, "beta": batch.beta}
    return (PerToken(loss, view.mask) if config.aggregation == "token" else view.sum_of(loss)), metrics


def _fit(rates: torch.Tensor, sample: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters of the density, from the success rates (g,) by their moments; 1 and 1 where these do not vary."""
    one = torch.ones((), dtype=rates.dtype)
    if len(rates) < 2 or float(rates.max() - rates.min()) < 1e-9:
        return one, one
    mean, variance = rates.mean(), rates.var(correction=int(sample))
    k = mean * (1 - mean) / variance - 1
    return (1 + mean * k / 3).maximum(one), (1 + (1 - mean) * k / 3).maximum(one)
