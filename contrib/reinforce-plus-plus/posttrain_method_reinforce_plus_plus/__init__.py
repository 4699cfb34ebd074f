"""REINFORCE++: PPO's token rewards and clip without its value model; the baseline is the mean over the whole step.

Paper: Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization",
arXiv:2501.03262; the variant without a group baseline.

Loss in words: each token is charged beta times its log-ratio to the reference (an estimate of the divergence, without
gradient), and the last one also gets the completion's reward. What a token is worth is the sum of these from it to the
end, discounted by gamma, then centred and scaled by the mean and deviation over all tokens of the step:

    r_t = -beta (log p_old - log p_reference) + [t is last] reward
    G_t = r_t + gamma G_(t+1),   A_t = (G_t - mean) / sqrt(variance + 1e-8)

The loss is the clipped product of this advantage and the token's probability relative to the policy that sampled it,
averaged over all tokens of the step.

Differs from the paper: the variance is the sample's (divisor n - 1), as in verl; OpenRLHF divides by n. A step whose
returns are all equal has advantages of exactly 0. Tokens of truncated completions count in mean and variance, also
where mask-truncated leaves them out of the loss.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- kl: log-ratio of a token to the reference (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage of a token. About 0.8; 0 means that all returns are equal: nothing to learn.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.01
    """Weight of the divergence from the reference in the reward (the authors' scripts). 0 needs no reference."""
    gamma: float = 1.0
    """Discount of what comes a token later, from 0 to 1 (the paper: 1). Below 1, early tokens of long answers are worth
    less, also where all rewards are equal."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}, expected a number from 0 to 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Discounted returns of each token, whitened over all tokens of the step: (B, T)."""
    mask = rollouts.mask
    last = mask & ~F.pad(mask[:, 1:], (0, 1))  # (B, T)
    token_rewards = torch.where(last, rewards[:, None], 0.0)  # (B, T)
    if config.beta:
        log_ratio = tensors.kl_k1(rollouts.old_logps, rollouts.reference_logps)  # (B, T)
        token_rewards = token_rewards - config.beta * torch.where(mask, log_ratio, 0.0)
    returns, following = torch.zeros_like(token_rewards), torch.zeros_like(token_rewards[:, 0])
    for t in reversed(range(mask.shape[1])):
        following = token_rewards[:, t] + config.gamma * following  # (B,)
        returns[:, t] = following
    return torch.zeros_like(returns).masked_scatter(mask, _whitened(returns[mask]))


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    if config.beta:
        metrics["kl"] = tensors.kl_k1(view.logps.detach(), reference.completion.logps)
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}


def _whitened(values: torch.Tensor) -> torch.Tensor:
    """Values (n,) less their mean, in standard deviations; exactly 0 where all are equal or one is not scored."""
    everyone = torch.zeros(len(values), dtype=torch.long)
    centred = values - tensors.group_mean(values, everyone)
    return (centred / (tensors.group_std(values, everyone).square() + 1e-8).sqrt()).nan_to_num(0.0)
