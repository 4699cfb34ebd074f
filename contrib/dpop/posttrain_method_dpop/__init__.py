"""DPO-positive: DPO with a penalty where the chosen answer loses probability.

Paper: Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", arXiv:2402.13228,
equation 3.

Loss: from DPO's difference of log-ratios ``penalty_weight`` times as much is subtracted as the chosen answer's log-
probability lies below the reference's; beta times the rest goes into the log-sigmoid. The difference can then no
longer grow by lowering both answers.

Differs from the paper: nothing; lambda is called ``penalty_weight``.

Metrics:
- penalty: nats by which the chosen answer lies below the reference. Stays near 0; growth means the penalty is too
  weak.
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
    """Options of DPO-positive."""

    beta: float = 0.3
    """Strength of the pull towards the reference (arXiv:2402.13228)."""
    penalty_weight: float = 50.0
    """Weight of a nat that the chosen answer lost, lambda in arXiv:2402.13228 (5 to 500)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin less the penalty."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    penalty = relu(reference.chosen.sum - policy.chosen.sum)  # (B,)
    loss = -logsigmoid(margin - config.beta * config.penalty_weight * penalty)  # (B,)
    return loss, {
        "penalty": penalty.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
