"""ALP: an answer's length costs the more, the more often the prompt is solved.

Paper: Xiang et al. 2025, "Just Enough Thinking: Efficient Reasoning with Adaptive Length Penalties Reinforcement
Learning", arXiv:2506.05256, section 3.

Loss in words: a prompt that is nearly always solved needs no long thoughts, one that is rarely solved may have them.
From the reward R of a completion of L tokens is taken beta times L, times the share p of the prompt's completions that
are right, at least one K-th of them:

    R' = R - beta * L * max(p, 1 / K),   K completions in the group

R' is compared within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens
of the step. Rewards are 0 or 1; p is their mean.

Differs from the paper: the clipped loss is averaged over tokens, as in the authors' framework; there is no divergence
from a reference.

Metrics:
- shaped_rewards: mean of R'. Rises with the reward; the distance between the two is the penalty.
- solve_rate: mean of p. At 1 only the length is still learnt.
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

    beta: float = 1e-7
    """Penalty of a token (the paper, where lengths are thousands of tokens)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The penalised rewards, compared within their groups: (B,)."""
    size = (rollouts.group[:, None] == rollouts.group).sum(1)  # (B,)
    solved = tensors.group_mean(rewards, rollouts.group)
    shaped = rewards - config.beta * rollouts.lengths.to(rewards.dtype) * torch.maximum(solved, 1 / size)
    advantages = tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon)
    return {"advantages": advantages, "shaped_rewards": shaped, "solve_rate": solved}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "solve_rate"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
