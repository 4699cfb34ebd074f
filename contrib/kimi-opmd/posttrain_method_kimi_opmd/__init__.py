"""Kimi's online policy mirror descent: a policy gradient with a group baseline, held near the policy that sampled.

Paper: Kimi Team 2025, "Kimi k1.5: Scaling Reinforcement Learning with LLMs", arXiv:2501.12599, section 2.3.2.

Loss in words: near the policy that sampled, the best one has a log-ratio to it in proportion to the reward. Squaring
what is missing, and dropping what does not depend on the policy, leaves for a completion with log-probabilities l now
and o when it was sampled:

    kimi:     -(R - mean of the group) * sum l  +  tau / 2 * (sum l - sum o)^2        averaged over completions
    trinity:  -(R - mean of the group) * l / (1 + tau)                                averaged over all tokens

The second form, of Trinity-RFT, is the gradient at the sampling policy alone.

Differs from the paper: the optimiser is not reset between batches of rollouts. The length reward is kimi-length.

Metrics:
- distance: mean of (sum l - sum o)^2. 0 in the first update of a batch; far above 1 tau is too small.
- advantage_size: mean absolute advantage. 0 means that the rewards within each group are equal.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    tau: float = 0.1
    """Strength of the pull to the policy that sampled."""
    form: Literal["kimi", "trinity"] = "kimi"
    """The paper's loss, or Trinity-RFT's first order of it."""

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ValueError(f"tau is {self.tau}, expected 0 or more")


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Reward less the mean of the group: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient and squared log-ratio of each completion."""
    view = policy.completion
    distance = view.sum_of(view.logps - batch.old_logps).square()  # (B,)
    if config.form == "trinity":
        loss = PerToken(-batch.advantages.reshape(len(view.logps), -1) * view.logps / (1 + config.tau), view.mask)
    else:
        loss = -batch.advantages * view.sum + config.tau / 2 * distance
    return loss, {
        "distance": distance.detach(),
        "advantage_size": batch.advantages.abs(),
    }
