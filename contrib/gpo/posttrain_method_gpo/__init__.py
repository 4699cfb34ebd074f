"""Generalised preference optimisation: any convex function of the margin is a loss.

Paper: Tang et al. 2024, "Generalized Preference Optimization: A Unified Approach to Offline Alignment",
arXiv:2402.05749, table 1.

Loss: with z DPO's margin, beta times the difference of log-ratios, the loss is f(z). Functions differ in how hard they
push pairs that are right already, hence in how far the policy leaves the reference at the same beta.

logistic             log(1 + e^-z)     (DPO)
hinge                max(0, 1 - z)     (SLiC)
squared              (z - 1)^2         (IPO up to scale)
exponential          e^-z
truncated_quadratic  max(0, 1 - z)^2
savage               1 / (1 + e^z)^2

Differs from the paper: the exponent of ``exponential`` is at most 50, for float32.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Config:
    """Options of generalised preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    convex: Literal["logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage"] = "logistic"
    """f; savage is not convex, and the paper's table has it for its robustness."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """The chosen function of the margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = _FUNCTIONS[config.convex](margin)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


_FUNCTIONS = {
    "logistic": lambda z: softplus(-z),
    "hinge": lambda z: relu(1 - z),
    "squared": lambda z: (z - 1) ** 2,
    "exponential": lambda z: (-z).clamp(max=50).exp(),
    "truncated_quadratic": lambda z: relu(1 - z) ** 2,
    "savage": lambda z: (-z).sigmoid() ** 2,
}
