"""LOOP: leave-one-out advantages with PPO's clipping of each token.

Paper: Chen et al. 2025, "Reinforcement Learning for Long-Horizon Interactive LLM Agents", arXiv:2502.01600, section 4.

Loss in words: PPO's loss with the simplest of baselines: what a completion is worth is its reward less the mean of the
prompt's other completions, the same for each of its tokens. The ratio of each token to the policy that sampled it is
clipped on its own, so that a batch of rollouts serves several updates; the mean is over all tokens of the step:

    loss = -min(ratio_t A, clip(ratio_t, 1 - epsilon, 1 + epsilon) A)

Tokens that the environment wrote are not learnt from.

Differs from the paper: the paper's completions are episodes with an interpreter. rloo, beside it, clips whole
completions.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass

from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Reward less the mean of the others in the group: (B,)."""
    return (rewards - tensors.leave_one_out_mean(rewards, rollouts.group)).nan_to_num(0.0)  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config)
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
