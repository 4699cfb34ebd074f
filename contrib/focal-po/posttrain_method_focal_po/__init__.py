"""FocalPO: pairs that are ranked rightly count more, those that are not count less.

Paper: Liu et al. 2025, "FocalPO: Enhancing Preference Optimizing by Focusing on Correct Preference Rankings",
arXiv:2501.06645, equation 4.

Loss: with p the sigmoid of DPO's margin, the loss is -p^gamma log p. Classic focal loss, (1 - p)^gamma, stresses what
is wrong; DPO rarely repairs such pairs, so the stress lies on the others here.

Differs from the paper: the gradient flows through the factor too, as the equation is written; a port holds it
constant, which has the same value. The default of gamma is not checked against the authors' scripts.

Metrics:
- factor: p^gamma of the pair. Rises towards 1.
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
    """Options of FocalPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    gamma: float = 0.05
    """Power of the probability; 0 is DPO."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin times a power of its probability."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    log_p = logsigmoid(margin)  # (B,)
    factor = (config.gamma * log_p).exp()
    loss = -factor * log_p
    return loss, {
        "factor": factor.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
