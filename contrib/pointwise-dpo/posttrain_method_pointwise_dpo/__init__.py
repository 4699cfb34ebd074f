"""Pointwise DPO: the implied reward of a single answer as the logit of its being good.

Paper: Cai et al. 2023, "ULMA: Unified Language Model Alignment with Human Demonstration and Point-wise Preference",
arXiv:2312.02554, section 3.

Loss: the binary cross-entropy of sigmoid(beta rho) with the label, where rho is the log-ratio of policy to reference
of a whole answer. ``bco`` is the same with a shift that makes the bound of DPO's loss tighter.

Differs from the paper: nothing; the learning rate is that of ``kto``.

Metrics:
- reward_good, reward_bad: beta * rho of good and of bad answers. The first rises above 0, the second falls below.
- accuracy: share of answers on the right side of the reference. From about 0.5 upwards.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Cross-entropy of the classifier, one value an answer."""
    reward = config.beta * (policy.completion.sum - reference.completion.sum)  # (B,)
    good = batch.label.bool()
    loss = -F.logsigmoid(torch.where(good, reward, -reward))
    reward = reward.detach()
    nothing = torch.full_like(reward, torch.nan)  # an answer of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "accuracy": (good == (reward > 0)).to(reward.dtype),
    }
