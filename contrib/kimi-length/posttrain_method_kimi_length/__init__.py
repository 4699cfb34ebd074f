"""Kimi's length reward: within a group short answers gain, long ones lose, and wrong ones never gain.

Paper: Kimi Team 2025, "Kimi k1.5: Scaling Reinforcement Learning with LLMs", arXiv:2501.12599, section 2.3.3.

Loss in words: the shortest completion of a group has lambda 1/2, the longest -1/2, the others lie between:

    lambda = 1/2 - (L - shortest) / (longest - shortest),   0 for all where all are equally long
    R' = R + weight * lambda for a right answer,   R + weight * min(0, lambda) for a wrong one

R' is compared within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens
of the step. A completion counts as right where its reward is above 0.

Differs from the paper: the paper adds the length reward to its own mirror descent (see kimi-opmd) and only after a
while; here weight is constant and the loss is the clipped one.

Metrics:
- shaped_rewards: mean of R'. Within weight / 2 of the reward.
- length_reward: mean of what is added. Below 0; near 0 when all answers of a group are equally long.
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

    weight: float = 1.0
    """Weight of the length reward."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The rewards with that for the length, compared within the group: (B,)."""
    lengths = rollouts.lengths.to(rewards.dtype)  # (B,)
    same = rollouts.group[:, None] == rollouts.group  # (B, B)
    shortest = torch.where(same, lengths, torch.inf).amin(1)
    spread = torch.where(same, lengths, -torch.inf).amax(1) - shortest
    share = torch.where(spread > 0, 0.5 - (lengths - shortest) / spread.clamp(min=1), 0.0)
    length_reward = config.weight * torch.where(rewards > 0, share, share.clamp(max=0))
    shaped = rewards + length_reward
    advantages = tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon)
    return {"advantages": advantages, "shaped_rewards": shaped, "length_reward": length_reward}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "length_reward"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
