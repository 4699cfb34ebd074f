"""Bounded DPO: the rejected answer is measured against a mixture, so that pushing it down without end gains nothing.

Paper: Cho et al. 2025, "Rethinking DPO: The Role of Rejected Responses in Preference Misalignment", arXiv:2506.12725.

Loss: DPO's logistic loss in which the rejected answer's probability under the policy is replaced by a mixture, lam
times the policy and 1 - lam times the reference. Its log-ratio is then log(lam e^rho + 1 - lam), rho being the plain
one, and cannot fall below log(1 - lam): a margin has to come from the chosen answer.

Differs from the paper: nothing known; the formula is from descriptions of the paper, no code was at hand.

Metrics:
- mixed_rejected: beta times the rejected answer's log-ratio under the mixture; not below beta log(1 - lam).
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from math import log

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of bounded DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    lam: float = 0.5
    """Share of the policy in the mixture, above 0 and below 1; near 1 it is DPO."""

    def __post_init__(self) -> None:
        if not 0 < self.lam < 1:
            raise ValueError(f"lam is {self.lam}, expected a share above 0 and below 1.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss with the rejected answer under the mixture."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    ours = log(config.lam) + policy.rejected.sum - reference.rejected.sum  # (B,)
    mixed = config.beta * torch.logaddexp(ours, torch.full_like(ours, log(1 - config.lam)))
    loss = -logsigmoid(reward_chosen - mixed)  # (B,)
    return loss, {
        "mixed_rejected": mixed.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
