"""Maximum likelihood reinforcement learning: advantages are divided by the group's success rate, so rare successes
count.

Paper: Tajwar et al. 2026, "Maximum Likelihood Reinforcement Learning", arXiv:2602.02710.

Loss in words: to maximise the log-likelihood of success rather than its probability, the gradient of a prompt is
divided by its success rate. What a completion is worth is its reward less its group's mean, divided by that mean; a
group without any success is worth nothing. The clipped policy gradient with it is averaged over all tokens of the step:

    A = (R - mean) / (mean + advantage_epsilon) where the mean is above 0, else 0

Differs from the paper: the loss is PPO's, as in SkyRL; with one update a batch it is the paper's. Rewards are meant to
be 0 and 1, or at least not negative.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- solved: share of completions whose group has any reward. Below 0.2 most of the sampling is in vain.
- advantage_size: mean absolute advantage: 2 (1 - success rate). Falls as the task is learnt.
"""

from dataclasses import dataclass

from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the mean (SkyRL)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, relative to that mean: (B,)."""
    mean = tensors.group_mean(rewards, rollouts.group)  # (B,)
    advantages = (rewards - mean) / (mean + config.advantage_epsilon)
    return {"advantages": advantages.where(mean > 0, 0.0).nan_to_num(0.0), "solved": (mean > 0).to(rewards.dtype)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("solved",))
