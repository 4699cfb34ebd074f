"""Calibrated DPO: the implied rewards also have to have the right size.

Paper: Xiao et al. 2024, "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
arXiv:2412.14516.

Loss: with the log-ratios of policy to reference, the preference term is the negative log-sigmoid of their difference,
without a beta. The calibration term is ``calib_coef`` times the squares of the chosen log-ratio's distance from 1 / (2
beta) and the rejected one's from -1 / (2 beta), so that the chosen answer cannot lose probability while the difference
grows.

Differs from the paper: the paper adds the squares with weight 1; the authors' code takes half, which is the default.

Metrics:
- preference, calibration: the two terms. calibration falls from calib_coef / (2 beta^2).
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of Cal-DPO."""

    beta: float = 0.1
    """Inverse of the log-ratios that the answers are calibrated to: 1 / (2 beta) and its negative."""
    calib_coef: float = 0.5
    """Weight of the calibration: 0.5 in the authors' code, 1 in the paper."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0: the targets are 1 / (2 beta).")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the difference of log-ratios, and their distances from their targets."""
    chosen, rejected = policy.chosen.sum - reference.chosen.sum, policy.rejected.sum - reference.rejected.sum  # (B,)
    target = 1 / (2 * config.beta)
    loss = {
        "preference": -logsigmoid(chosen - rejected),  # (B,)
        "calibration": config.calib_coef * ((chosen - target) ** 2 + (rejected + target) ** 2),
    }
    reward_chosen, reward_rejected = config.beta * chosen, config.beta * rejected
    margin = reward_chosen - reward_rejected
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
