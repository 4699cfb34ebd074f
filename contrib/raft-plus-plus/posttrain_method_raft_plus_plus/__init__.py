"""RAFT++: only right answers are learnt, with the ratio and clipping of PPO.

Paper: Xiong et al. 2025, "A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce",
arXiv:2504.11343, section 3.

Loss in words: completions whose reward is above threshold are kept, the others are not learnt from at all. Each kept
one has the advantage 1, and its tokens' ratio to the policy that sampled them is clipped, so that a batch of rollouts
serves several updates; the mean is over all tokens that are kept:

    loss = -min(ratio, clip(ratio, 1 - epsilon, 1 + epsilon_high))

Where no completion of the whole step is right, the step is taken on all of them with the advantage 0.

Differs from the paper: nothing known; epsilon_high 0.28 is the paper's clip-higher variant.

Metrics:
- rollouts_learnt: share of the completions that are right. Rises.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass

from posttrain import Selection, hookimpl
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    threshold: float = 0.0
    """Completions with a reward above this are right."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """The right ones."""
    right = [item for item, reward in zip(rollouts.items, rewards.tolist(), strict=True) if reward > config.threshold]
    return Selection(right or None)


@hookimpl
def posttrain_advantages(rewards, config):
    """1 for each that is right: (B,)."""
    return (rewards > config.threshold).to(rewards.dtype)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config)
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
