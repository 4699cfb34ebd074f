"""Balanced preference optimisation: always work on the answer of the pair that lags behind.

Paper: Sun et al. 2025, "BPO: Revisiting Preference Modeling in Direct Preference Optimization", arXiv:2506.03557,
equation 5.

Loss: the chosen answer's own margin is beta times its log-ratio of policy to reference, the rejected one's minus alpha
beta times its. The loss is the negative log-sigmoid of the smaller of the two, so the gradient goes to one answer
only: the chosen one cannot be lowered to widen the gap.

Differs from the paper: where both are equal, as at the first step, the gradient goes to the chosen answer.

Metrics:
- chosen_lags: share of pairs whose chosen answer has the gradient. From 1 at the first step to some balance.
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
    """Options of balanced preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    alpha: float = 0.5
    """How much a nat of the rejected answer counts, above 0: smaller values work on it longer."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, expected a number above 0.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the smaller margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    other = -config.alpha * reward_rejected  # (B,)
    lags = reward_chosen <= other
    loss = -logsigmoid(torch.where(lags, reward_chosen, other))  # (B,)
    return loss, {
        "chosen_lags": lags.to(margin.dtype),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
