"""Entropy minimisation by reinforcement learning: the reward is minus the entropy of the model's own tokens.

Papers: Prabhudesai et al. 2025 (RENT), "Maximizing Confidence Alone Improves Reasoning", arXiv:2505.22660; Agarwal et
al. 2025 (EM-RL), arXiv:2505.15134.

Loss in words: a completion's reward is taken from the policy that sampled it: minus the mean entropy of its next-token
distributions (RENT, EM-RL-token), or the log-probability of the whole completion (EM-RL-sequence). It is compared
within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens of the step.
Verifiers, where they are named, are only logged.

Differs from the paper: EM-RL-token sums the entropies; the mean does not pay for short answers. There is no divergence
from a reference. Certainty can be hacked: watch an evaluation with real rewards, and stop early.

Metrics:
- shaped_rewards: mean reward, in nats. Rises towards 0.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    certainty: Literal["entropy", "log-probability"] = "entropy"
    """What is rewarded: little entropy of each token, or a likely completion."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rollouts, config):
    """Certainty of each completion, compared within the group: (B,)."""
    if config.certainty == "entropy":
        certainty = -tensors.masked_mean(rollouts.old("entropy"), rollouts.mask)  # (B,)
    else:
        certainty = tensors.masked_sum(rollouts.old_logps, rollouts.mask)
    return {
        "advantages": tensors.group_advantages(certainty, rollouts.group, config.advantage_epsilon),
        "shaped_rewards": certainty,
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards",))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
