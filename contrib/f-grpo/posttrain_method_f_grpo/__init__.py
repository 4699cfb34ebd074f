"""F-GRPO: groups count less, the more of their completions are right already.

Paper: arXiv:2602.06717 (2026), "F-GRPO"; the weight is that of the focal loss, Lin et al. 2017, arXiv:1708.02002.

Loss in words: a group in which most completions are right mostly repeats what the policy knows, and sampling it again
and again forgets rare right answers. What a completion is worth, its reward less its group's mean in standard
deviations, is multiplied by a weight that falls with the share p of right ones in the group:

    A' = (1 - p)^gamma * A

and has the clipped policy gradient, averaged over all tokens of the step. Rewards are 0 or 1; p is their mean, held
within 0 and 1.

Differs from the paper: nothing known; the clipped loss is averaged over tokens.

Metrics:
- focal_weight: mean of (1 - p)^gamma. Falls as prompts get solved; near 0 other prompts are due.
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

    gamma: float = 0.5
    """How quickly the weight falls (the paper: 0.5 to 1). 0 is GRPO."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, expected 0 or more")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Advantages within the group, weighted by how rarely it is right: (B,)."""
    solved = tensors.group_mean(rewards, rollouts.group).nan_to_num(0.0)
    weight = (1 - solved).clamp(0, 1) ** config.gamma  # (B,)
    return {
        "advantages": weight * tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon),
        "focal_weight": weight,
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("focal_weight",))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
