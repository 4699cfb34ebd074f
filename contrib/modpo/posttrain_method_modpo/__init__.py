"""Multi-objective DPO: learn one preference while other objectives keep their say.

Paper: Zhou et al. 2023, "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
arXiv:2310.03708.

Loss: the pairs state one preference; ``chosen_score`` and ``rejected_score`` are what the other objectives think of
each answer. With weights w0 of the first and w1 of the others, the loss is the negative log-sigmoid of (beta times the
difference of log-ratios less w1 times the difference of scores) / w0: where the others prefer the rejected answer, the
policy need not go as far.

Differs from the paper: the paper sums over several other objectives, each with a weight; here they are one column,
summed by whoever makes the data. The authors train margin rewards as DPO models first, which is a run of its own.

Metrics:
- others: the scores' part of the margin, after the division. Depends on the data alone.
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
    """Options of multi-objective DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    weights: tuple[float, float] = (0.5, 0.5)
    """Of the preference that is learnt, above 0, and of the other objectives' scores."""

    def __post_init__(self) -> None:
        if not self.weights[0] > 0:
            raise ValueError(f"weights is {self.weights}, expected a first weight above 0: margins are divided by it.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the margin, the other objectives' part taken off."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    own, other = config.weights
    others = other * (batch.chosen_score - batch.rejected_score).to(margin) / own  # (B,)
    loss = -logsigmoid(margin / own - others)  # (B,)
    return loss, {
        "others": others,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
