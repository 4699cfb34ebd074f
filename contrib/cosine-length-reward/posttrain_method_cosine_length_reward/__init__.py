"""Cosine length reward: right answers earn more when short, wrong ones lose less when long.

Paper: Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv:2502.03373, section 4.

Loss in words: whether an answer is right is known; how much that is worth follows half a period of a cosine over its
length L, from 0 to the longest one. A right answer falls from correct_short to correct_long; a wrong one rises from
wrong_short to wrong_long: what is not solved yet should be thought about for longer.

    R' = long + (short - long) / 2 * (1 + cos(pi L / longest))

R' is compared within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens
of the step. A completion counts as right where its reward is above 0.

Differs from the paper: the paper has PPO and a fixed penalty for what exceeds the longest length; --mask-truncated
leaves such completions out, and by default they earn what the longest do. Its penalty for repetitions is a reward of
its own. The values are TRL's, which lie within the paper's.

Metrics:
- shaped_rewards: mean of R'. Between the four values.
- correct: share of right completions. Rises.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    correct_short: float = 1.0
    """Worth of a right answer without length (TRL)."""
    correct_long: float = 0.5
    """Worth of a right answer of the longest length (TRL)."""
    wrong_short: float = -1.0
    """Worth of a wrong answer without length (TRL)."""
    wrong_long: float = -0.5
    """Worth of a wrong answer of the longest length (TRL)."""
    longest: int | None = None
    """Length of half a period, in tokens; None is max-new-tokens."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The cosine of the length, by right and wrong, compared within the group: (B,)."""
    right = (rewards > 0).to(rewards.dtype)  # (B,)
    short = config.wrong_short + right * (config.correct_short - config.wrong_short)
    long = config.wrong_long + right * (config.correct_long - config.wrong_long)
    share = (rollouts.lengths.to(rewards.dtype) / config.longest).clamp(max=1)
    shaped = long + (short - long) / 2 * (1 + torch.cos(torch.pi * share)) + 0 * rewards  # NaN: it has no reward
    return {
        "advantages": tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon),
        "shaped_rewards": shaped,
        "correct": right,
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "correct"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
