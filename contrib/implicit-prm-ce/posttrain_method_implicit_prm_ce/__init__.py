"""Implicit process reward model: the cross-entropy of outcomes teaches rewards for steps.

Paper: Yuan et al. 2024, "Free Process Rewards without Process Labels", arXiv:2412.01981, equation 6.

Loss: the binary cross-entropy of sigmoid(beta rho) with the label, where rho is the log-ratio of policy to reference
of a whole solution. What is trained is a reward model: the reward of a step is beta times the sum of the tokens'
log-ratios over it, and no step was ever labelled.

Differs from the paper: nothing. Where ``pointwise-dpo`` trains a policy with the same loss, this run's product is the
pair of models; score with both, and with the beta of the run.

Metrics:
- reward_good, reward_bad: beta * rho of right and of wrong solutions. The first rises above 0, the second falls below.
- accuracy: share of solutions judged rightly, by the sign of rho. Rises well above the share of the larger class.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Scale of the reward (section 4.1)."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Cross-entropy of outcomes, one value a solution."""
    reward = config.beta * (policy.completion.sum - reference.completion.sum)  # (B,)
    good = batch.label.bool()
    loss = F.binary_cross_entropy_with_logits(reward, good.to(reward.dtype), reduction="none")
    reward = reward.detach()
    nothing = torch.full_like(reward, torch.nan)  # a solution of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "accuracy": (good == (reward > 0)).to(reward.dtype),
    }
