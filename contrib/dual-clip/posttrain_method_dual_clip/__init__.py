"""Dual clip: GRPO whose loss for a bad token is bounded also where the token has become much likelier.

Paper: Ye et al. 2019, "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning", arXiv:1912.09729,
section 3.5; the usual setting of verl.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. PPO's minimum bounds what good tokens gain; where the advantage is negative and the ratio large, nothing
bounds the loss. There it is cut at c times the advantage. The mean is over a completion's tokens, then over
completions:

    loss = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A),  where A < 0 no more than -c A

Differs from the paper: that is about games; the advantages are GRPO's (arXiv:2402.03300). The standard deviation is the
sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- clip_dual: share of tokens at the second bound. 0 in the first update; above 0.01 the policy moves too fast.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    c: float = 3.0
    """Bound of the loss of a bad token, in advantages; above 1 (the paper; verl's clip_ratio_c)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if self.c <= 1:
            raise ValueError(f"c is {self.c}, expected a number above 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient with a second bound, averaged over a completion's tokens."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    once = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    bounded = (advantages < 0) & (once > -config.c * advantages)
    loss = torch.where(bounded, -config.c * advantages, once)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "clip_dual": bounded.to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return view.mean_of(loss), {name: PerToken(values, view.mask) for name, values in metrics.items()}
