"""MinorDPO: the rejected answer is pushed down only while it is likelier than under the reference.

Paper: Xie et al. 2024, "Minor DPO reject penalty to increase training robustness", arXiv:2408.09834.

Loss: DPO's logistic loss of beta times the chosen answer's log-ratio less beta times the rejected one's, where that is
positive; a rejected answer below the reference counts as 0 and has no gradient.

Differs from the paper: nothing.

Metrics:
- above: share of rejected answers likelier than under the reference, which are pushed down. Falls.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True)
class Config:
    """Options of MinorDPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss with a one-sided penalty of the rejected answer."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(reward_chosen - relu(reward_rejected))  # (B,)
    return loss, {
        "above": (reward_rejected > 0).to(margin.dtype),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
