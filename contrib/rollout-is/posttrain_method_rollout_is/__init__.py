"""Rollout-anchored importance sampling: weights are taken to the generator, and what is out of range is left out.

Source: the policy loss "rollout_is" of SkyRL (github.com/NovaSky-AI/SkyRL); there is no paper.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. It multiplies the token's log-probability and its weight: the probability under the policy as it is now
relative to that with which the generator sampled the token, held constant. Tokens whose weight has left the range are
left out. That one ratio covers both how far the policy has moved and how the generator differs from the trainer, and no
second forward pass is needed:

    loss = -mean over all tokens of  constant(r [1 - low < r < 1 + high]) A log p,   r = p / p_sampled

Differs from the source: nothing. The standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.
Do not set --correction as well: the difference would count twice.

Metrics:
- ratio: probability relative to the generator's. Near 1.
- left_out: share of tokens out of range. Under 0.1; more, the generator is too far away or too old.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """Log-probabilities weighted by the advantage and by the ratio to the generator."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.sampled_logps)  # (B, T)
    kept = (ratio > 1 - config.epsilon_low) & (ratio < 1 + config.epsilon_high)
    weight = torch.where(kept, ratio, torch.zeros_like(ratio)).detach()  # (B, T)
    loss = -weight * advantages * view.logps  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "left_out": (~kept).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
