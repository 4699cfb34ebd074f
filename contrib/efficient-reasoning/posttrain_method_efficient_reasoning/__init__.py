"""Efficient reasoning: among the right answers of a prompt the shorter ones are worth more.

Paper: Arora and Zanette 2025, "Training Language Models to Reason Efficiently", arXiv:2502.04463, section 4.

Loss in words: a right answer loses up to alpha of its reward, by how long it is beside the other right answers to its
prompt; a wrong answer has nothing to lose:

    R' = R * (1 - alpha * sigmoid((L - mean) / deviation)),   mean and deviation of the lengths of the right answers

What a completion is worth is R' less the mean R' of the prompt's other completions; the clipped policy gradient of
that is averaged over all tokens of the step. A completion counts as right where its reward is above 0.

Differs from the paper: nothing known. The deviation is the root of the mean square (divisor n, as in the authors'
code); where it is 0, all right answers lose alpha / 2.

Metrics:
- shaped_rewards: mean of R'. Between (1 - alpha) of the reward and the reward.
- correct_length: mean length of the right completions, in tokens. Falls.
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

    alpha: float = 0.1
    """Largest share of the reward that length costs (the paper compares 0 to 0.4)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, expected a share from 0 to below 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The rewards, less what their length costs, against the others of the group: (B,)."""
    right = rewards > 0
    lengths = torch.where(right, rollouts.lengths.to(rewards.dtype), torch.nan)  # (B,), of right ones alone
    above = lengths - tensors.group_mean(lengths, rollouts.group)
    deviation = tensors.group_mean(above.square(), rollouts.group).sqrt().nan_to_num(0.0)
    cost = torch.sigmoid(above / deviation.clamp(min=1e-7)).nan_to_num(0.0)
    shaped = rewards * (1 - config.alpha * cost)
    advantages = shaped - tensors.leave_one_out_mean(shaped, rollouts.group)
    return {"advantages": advantages.nan_to_num(0.0), "shaped_rewards": shaped, "correct_length": lengths}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "correct_length"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
