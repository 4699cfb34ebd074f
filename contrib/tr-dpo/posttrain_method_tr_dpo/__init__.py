"""Trust-region DPO: the reference follows the policy.

Paper: Gorbatovski et al. 2024, "Learn Your Reference Model for Real Good Alignment", arXiv:2404.09656.

Loss: DPO's logistic loss of beta times the difference of log-ratios. Every ``reference_every`` steps the reference
goes the share ``reference_rate`` of its way to the policy (a soft update; a rate of 1 is the paper's hard update), and
log-ratios begin anew from there.

Differs from the paper: nothing. Both settings are shared with other methods whose reference moves. On a run shorter
than ``reference_every`` it is DPO.

Metrics:
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
    """Options of TR-DPO."""

    beta: float = 0.05
    """Strength of the pull towards the reference (arXiv:2404.09656)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the pair's margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
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
