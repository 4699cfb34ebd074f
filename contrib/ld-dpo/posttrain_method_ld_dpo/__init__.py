"""Length-desensitised DPO: what an answer has beyond the other one's length counts less.

Paper: Liu et al. 2024, "Length Desensitization in Direct Preference Optimization", arXiv:2409.06411.

Loss: both answers are cut at the length of the shorter one; tokens behind the cut count with the weight alpha, under
the policy and under the reference. The loss is DPO's of these log-ratios.

Differs from the paper: nothing: alpha is 1 for DPO and 0 for answers of equal length. Some ports weigh the policy
alone, which leaves a constant in the margin.

Metrics:
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
    """Options of LD-DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    alpha: float = 0.5
    """Weight of the tokens beyond the common length, 0 to 1; 1 is DPO."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected a weight from 0 to 1.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin, tokens beyond the common length discounted."""
    common = torch.minimum(policy.chosen.lengths, policy.rejected.lengths)  # (B,)
    reward_chosen = config.beta * _discounted(policy.chosen, reference.chosen, common, config.alpha)  # (B,)
    reward_rejected = config.beta * _discounted(policy.rejected, reference.rejected, common, config.alpha)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _discounted(policy, reference, common, alpha):
    """Log-ratio ``(B,)`` in which tokens from place ``common`` ``(B,)`` on have the weight alpha."""
    place = torch.arange(policy.logps.shape[1], device=common.device)  # (T,)
    weight = torch.where(place < common[:, None], 1.0, alpha).to(policy.logps)  # (B, T)
    return policy.sum_of(weight * (policy.logps - reference.logps))
