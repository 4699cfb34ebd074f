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
from typing import Literal

import torch
from posttrain import PerToken, hookimpl


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
    aggregation: Literal["sequence", "token"] = "sequence"
    """Average over a completion's tokens, then completions (the paper), or over all tokens of the step."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token, with its gradient."""
    return {"entropy": logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)}


@hookimpl
def posttrain_advantages(rewards, rollouts, advantages, config, state):
    """The weight of the entropy for this batch (B,); then the weight moves. The advantages stay."""
    weight = state.get("entropy_weight", config.entropy_coef)
    low = float(rollouts.old("entropy")[rollouts.mask].mean()) <= config.entropy_target
    moved = weight + (config.entropy_coef_delta if low else -config.entropy_coef_delta)
    state["entropy_weight"] = min(max(moved, 0.0), config.entropy_coef_max)
    return {"advantages": advantages, "entropy_weight": torch.full_like(rewards, weight if low else 0.0)}


@hookimpl
def posttrain_loss(batch, policy, inner):
    """The loss, less the entropy of each token."""
    view, (terms, metrics) = policy.completion, inner
    bonus = -batch.entropy_weight[:, None] * view.entropy  # (B, T)
    terms = {"policy" if name == "loss" else name: term for name, term in terms.items()}
    return {**terms, "entropy_bonus": PerToken(bonus, view.mask)}, {**metrics, "entropy_weight": batch.entropy_weight}
