"""RL-ZVP: prompts whose answers are all right or all wrong teach too, token by token, by the policy's entropy.

Paper: Le et al. 2025, "No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via
Entropy-Guided Advantage Shaping", arXiv:2509.21880.

Loss in words: in a group whose rewards differ, what a completion is worth is its reward minus the mean of its group,
divided by the group's standard deviation. Where all rewards are equal that would be nothing. There each token gets an
advantage of its own from the entropy H of the policy before the update: if all answers are right, alpha H, so that
uncertain decisions that led to success are strengthened; if all are wrong, -alpha (largest H of the completion - H), so
that uncertain tokens, where something else may still be found, are spared. The clipped policy gradient with it is
averaged over all tokens of the step, clipped further up than down, as in DAPO.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. A group
counts as right where its reward exceeds correct_above.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- zero_variance: share of completions in groups with equal rewards. These are what other methods throw away.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    alpha: float = 0.1
    """Weight of the entropy (the paper: 0.1 to 0.2)."""
    correct_above: float = 0.0
    """A completion with a larger reward counts as correct: 0 fits rewards of 0 and 1, and of -1 and 1."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """GRPO's advantages where rewards differ, otherwise ones made of each token's entropy: (B, T)."""
    above = rewards - tensors.group_mean(rewards, rollouts.group)  # (B,)
    spread = tensors.group_std(rewards, rollouts.group)  # (B,)
    usual = (above / (spread + config.advantage_epsilon)).nan_to_num(0.0)[:, None]  # (B, 1)
    entropy = rollouts.old("entropy").to(rewards.dtype)  # (B, T)
    most = entropy.masked_fill(~rollouts.mask, -torch.inf).amax(1, keepdim=True)  # (B, 1)
    right = (rewards > config.correct_above)[:, None]
    shaped = config.alpha * torch.where(right, entropy, entropy - most)  # (B, T)
    equal = (spread == 0) & ~rewards.isnan()  # (B,)
    advantages = torch.where(equal[:, None], shaped, usual.expand_as(shaped))
    return {"advantages": torch.where(rollouts.mask, advantages, 0.0), "zero_variance": equal.to(rewards.dtype)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("zero_variance",))
