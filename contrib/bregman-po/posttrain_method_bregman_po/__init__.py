"""Bregman preference optimisation: match the ratio of preferences under a divergence of one's choice.

Paper: Kim et al. 2025, "Preference Optimization by Estimating the Ratio of the Data Distribution", arXiv:2505.19601.

Loss: with z minus DPO's margin, R = exp(z) is the policy's ratio of the rejected to the chosen answer's preference.
The loss is h'(R) R - h(R) - h'(1/R) for a convex h, constants dropped. ``sba`` is the scaled power family h =
(R^(1+lam) - R) / (s lam (1 + lam)); ``logistic`` gives DPO back, ``kliep`` exp(z) + z.

sba: exp((1 + lam) z) / (s (1 + lam)) - exp(-lam z) / (s lam)

Differs from the paper: z beyond 30 either way counts as 30, as in the authors' code, and has no gradient there. The
default of lam is not checked against the authors' scripts.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Config:
    """Options of Bregman preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    generator: Literal["sba", "logistic", "kliep"] = "sba"
    """Which convex function the divergence is made from."""
    lam: float = 1.0
    """Order of the power family, above 0."""
    s: float = 4.0
    """Scale of the power family: at 4 its gradient at the first step is that of DPO."""

    def __post_init__(self) -> None:
        if not (self.lam > 0 and self.s > 0):
            raise ValueError(f"lam is {self.lam} and s is {self.s}, expected numbers above 0.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Divergence between the ratios of data and policy."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    z = (-margin).clamp(-30, 30)  # (B,)
    if config.generator == "logistic":
        loss = softplus(-margin)
    elif config.generator == "kliep":
        loss = z.exp() + z
    else:
        up, down = (1 + config.lam) * z, -config.lam * z
        loss = up.exp() / (config.s * (1 + config.lam)) - down.exp() / (config.s * config.lam)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
