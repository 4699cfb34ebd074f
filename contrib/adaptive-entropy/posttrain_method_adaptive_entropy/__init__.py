"""Adaptive entropy control: GRPO with a bonus for entropy, whose weight is steered to hold the entropy at a target.

Paper: He et al. 2025, "Skywork Open Reasoner 1 Technical Report", arXiv:2505.22312, section 4.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. The clipped policy gradient with it is averaged over a completion's tokens, then over completions. While the
mean entropy of the policy before the update is at most entropy_target, weight times the entropy, averaged over all
tokens of the step and with its gradient, is taken from the loss. After each batch of rollouts the weight rises by a
step where the entropy was at most the target, and falls by it otherwise:

    loss = mean of  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)  -  weight [H <= target] H

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The
weight starts at 0.01, as in TRL; the paper starts it at 0. It moves once a batch of rollouts.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- entropy: of the next-token distribution in nats. Stays near entropy_target, once it has fallen to it.
- entropy_weight: weight of the bonus in this batch, 0 while the entropy lies above the target. At entropy_coef_max the
  entropy cannot be held.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    entropy_target: float = 0.2
    """Entropy in nats that is to be held (the paper, section 4.2)."""
    entropy_coef: float = 0.01
    """Weight at the start (TRL; the paper: 0)."""
    entropy_coef_delta: float = 0.005
    """Step by which the weight moves (the paper)."""
    entropy_coef_max: float = 1.0
    """Largest weight; the smallest is 0."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token, with its gradient."""
    return {"entropy": logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)}


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """GRPO's advantages, and the weight of the entropy for this batch; then the weight moves: (B,) each."""
    advantages = tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)  # (B,)
    weight = state.get("entropy_weight", config.entropy_coef)
    low = float(rollouts.old("entropy")[rollouts.mask].mean()) <= config.entropy_target
    moved = weight + (config.entropy_coef_delta if low else -config.entropy_coef_delta)
    state["entropy_weight"] = min(max(moved, 0.0), config.entropy_coef_max)
    weight = torch.full_like(rewards, weight if low else 0.0)
    return {"advantages": advantages, "entropy_weight": weight}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient averaged over a completion's tokens, and less the entropy of each token."""
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
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    bonus = -batch.entropy_weight[:, None] * view.entropy  # (B, T)
    terms = {"policy": view.average(loss), "entropy_bonus": PerToken(bonus, view.mask)}
    return terms, metrics | {"entropy_weight": batch.entropy_weight}
