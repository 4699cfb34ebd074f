"""DPO with an offset: how much better an answer is says how much more it has to be preferred.

Paper: Amini, Vieira, Cotterell 2024, "Direct Preference Optimization with an Offset", arXiv:2402.10571.

Loss: the rows say how good each answer is, ``chosen_score`` and ``rejected_score``. The loss is the negative log-
sigmoid of DPO's margin (beta times the difference of log-ratios) less alpha times the logarithm of the difference of
scores. A pair whose answers hardly differ has a negative offset and teaches little.

Differs from the paper: a difference of scores below 1e-4, also one of the wrong sign, counts as 1e-4: the logarithm of
0 is no offset.

Metrics:
- offset: what the margin has to exceed. Depends on the data alone.
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
    """Options of ODPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    alpha: float = 1.0
    """Weight of the offset; 0 is DPO (arXiv:2402.10571: 1, and 0.5 for summaries)."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the margin beyond its offset."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    gap = (batch.chosen_score - batch.rejected_score).to(margin)  # (B,)
    offset = config.alpha * gap.clamp(min=1e-4).log()
    loss = -logsigmoid(margin - offset)  # (B,)
    return loss, {
        "offset": offset,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
