"""Length-regularised DPO: a longer answer has to win by less, so that verbosity is not learnt.

Paper: Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization", arXiv:2403.19159.

Loss: to DPO's margin alpha times the chosen answer's number of tokens less the rejected one's is added before the log-
sigmoid is taken. A pair whose winner is longer is partly explained by its length and teaches less; one whose winner is
shorter teaches more.

Differs from the paper: nothing. The sign is that of alpha above 0 punishing length; some ports have the opposite one,
inside beta.

Metrics:
- length_gap: tokens of the chosen answer less those of the rejected one. Depends on the data alone.
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
    """Options of R-DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    alpha: float = 0.01
    """Credit per token of difference; 0 is DPO."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin and the credit for length."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    gap = policy.chosen.lengths - policy.rejected.lengths  # (B,)
    loss = -logsigmoid(margin + config.alpha * gap)  # (B,)
    return loss, {
        "length_gap": gap,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
