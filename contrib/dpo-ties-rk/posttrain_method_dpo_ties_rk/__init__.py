"""DPO with ties: some pairs are equally good, and that is learnt too.

Paper: Chen et al. 2024, "On Extending Direct Preference Optimization to Accommodate Ties", arXiv:2409.17431 (DPO-RK).

Loss: in Rao and Kupper's model an answer wins with probability sigmoid(d - log nu), d being DPO's margin, and what is
left over is a tie. The rows say in ``tie`` whether their pair is one. The loss is the negative logarithm of the
probability of what the row says:

clear  -log sigmoid(d - log nu)
tie    -log(nu^2 - 1) - log sigmoid(d - log nu) - log sigmoid(-d - log nu)

Differs from the paper: nothing; Davidson's model, the paper's other one, is left out. The default of nu is not checked
against the authors' scripts.

Metrics:
- tie_loss: loss of the pairs that are ties.
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
    """Options of DPO with ties (Rao-Kupper)."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    nu: float = 3.0
    """How often equal answers tie, above 1: (nu - 1) / (nu + 1) of the time, half at 3."""

    def __post_init__(self) -> None:
        if not self.nu > 1:
            raise ValueError(f"nu is {self.nu}, expected a number above 1: at 1 there are no ties.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Negative log-probability of a win, or of a tie."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    won, lost = logsigmoid(margin - log(config.nu)), logsigmoid(-margin - log(config.nu))  # (B,) each
    tie = batch.tie.bool()  # (B,)
    loss = torch.where(tie, -log(config.nu**2 - 1) - won - lost, -won)
    return loss, {
        "tie_loss": torch.where(tie, loss, torch.nan).detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
