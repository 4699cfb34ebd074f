"""DPO-Shift: the rejected answer counts less, so that the chosen one's probability holds up.

Paper: Yang et al. 2025, "DPO-Shift: Shifting the Distribution of Direct Preference Optimization", arXiv:2502.07599.

Loss: DPO's logistic loss of beta times the chosen answer's log-ratio less f beta times the rejected one's. With f
below 1 the two are out of balance in favour of the chosen answer's probability. f is ``rejected_weight``, or goes in a
straight line from it to ``final_weight`` over the run.

Differs from the paper: the schedule counts optimiser steps. lambda is called ``rejected_weight``.

Metrics:
- rejected_weight: f of the step.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of DPO-Shift."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    rejected_weight: float = 0.75
    """Weight of the rejected answer, at the start or throughout (arXiv:2502.07599: 0.5 to 0.95)."""
    final_weight: float | None = None
    """Weight at the end of the run; None leaves it as it is."""


@hookimpl
def posttrain_loss(policy, reference, config, step):
    """Logistic loss of the margin with the rejected answer's weight."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    start = config.rejected_weight
    done = step.number / max(step.total - 1, 1)
    weight = start if config.final_weight is None else start + done * (config.final_weight - start)
    loss = -logsigmoid(reward_chosen - weight * reward_rejected)  # (B,)
    return loss, {
        "rejected_weight": torch.full_like(margin, weight),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
