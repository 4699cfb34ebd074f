"""APO-zero on single answers: the anchored loss of good answers, and of bad ones, without pairs.

Paper: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions: Addressing
Underspecification in Alignment", arXiv:2408.06266, section 3; on single answers as in TRL.

Loss: rho is the log-ratio of policy to reference of a whole answer.

    good: desirable_weight (1 - sigmoid(beta rho))        bad: undesirable_weight sigmoid(beta rho)

The anchor is the reference itself: good answers rise above it, bad ones fall below it. This is ``kto`` with its
baseline at 0, which saves the passes over mismatched answers.

Differs from the paper: it has pairs; here each answer stands alone. The weights of the two kinds are options.

Metrics:
- reward_good, reward_bad: beta * rho of good and of bad answers. The first rises above 0, the second falls below.
- accuracy: share of answers on the right side of the reference. From about 0.5 upwards.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """How soon an answer's gradient fades as it leaves the reference."""
    desirable_weight: float = 1.0
    """Weight of good answers."""
    undesirable_weight: float = 1.0
    """Weight of bad answers."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """One value an answer."""
    reward = config.beta * (policy.completion.sum - reference.completion.sum)  # (B,)
    good = batch.label.bool()
    above = reward.sigmoid()
    loss = torch.where(good, config.desirable_weight * (1 - above), config.undesirable_weight * above)
    reward = reward.detach()
    nothing = torch.full_like(reward, torch.nan)  # an answer of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "accuracy": (good == (reward > 0)).to(reward.dtype),
    }
