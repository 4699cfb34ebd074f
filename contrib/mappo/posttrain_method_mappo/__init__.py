"""Maximum a posteriori preference optimisation: the rejected answer is pushed down by as much as it is worse.

Paper: Lan et al. 2025, "MaPPO: Maximum a Posteriori Preference Optimization with Prior Knowledge", arXiv:2507.21183.

Loss: DPO's logistic loss of the chosen answer's implied reward less D times the rejected one's, D being the difference
of the rows' scores, cut to 0 and 1. Of two answers that are nearly as good the rejected one is not pushed away.

Differs from the paper: scores are taken as they are; the paper normalises a reward model's to 0 and 1. That D stands
at the rejected answer's reward is not checked against the authors' code.

Metrics:
- gap: D of the pair. Depends on the data alone.
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
    """Options of MaPPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss with the rejected reward scaled by the difference of scores."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    gap = (batch.chosen_score - batch.rejected_score).to(margin).clamp(0, 1)  # (B,)
    loss = -logsigmoid(reward_chosen - gap * reward_rejected)  # (B,)
    return loss, {
        "gap": gap,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
