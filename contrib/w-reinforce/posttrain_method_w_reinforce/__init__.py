"""Weighted REINFORCE: right and wrong answers are weighted on their own, and wrong ones do most of the teaching.

Paper: Zhu et al. 2025, "The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning", arXiv:2506.01347.

Loss in words: a correct completion is worth positive_weight, a wrong one -negative_weight; there is no baseline and no
group. To lower wrong answers moves their probability to all others that the policy thinks likely, and keeps it diverse;
to raise right ones sharpens it. The clipped policy gradient with it is averaged over all tokens of the step. With
weights 1 and 0 this is the paper's PSR, with 0 and 1 its NSR.

Differs from the paper: the loss is PPO's, as in the authors' code; with one update a batch it is -A log p.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- correct: share of completions that are correct. Rises.
- advantage_size: mean absolute advantage, between the two weights.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    positive_weight: float = 0.1
    """What a correct completion is worth (the paper: 0.1; PSR 1, NSR 0)."""
    negative_weight: float = 1.0
    """What a wrong one is worth, with the sign turned (the paper: 1; PSR 0, NSR 1)."""
    correct_above: float = 0.0
    """A completion with a larger reward counts as correct: 0 fits rewards of 0 and 1, and of -1 and 1."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The weight of right or wrong: (B,)."""
    correct = rewards > config.correct_above  # (B,)
    worth = torch.where(correct, config.positive_weight, -config.negative_weight).to(rewards.dtype)
    return {"advantages": worth.where(~rewards.isnan(), 0.0), "correct": correct.to(rewards.dtype)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("correct",))
