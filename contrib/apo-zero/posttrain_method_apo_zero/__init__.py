"""Anchored preference optimisation, zero: the chosen answer becomes likelier and the rejected one less likely.

Paper: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions: Addressing
Underspecification in Alignment", arXiv:2408.06266, equation 7. For data whose chosen answers are better than what the
model writes itself; where they are worse, use apo-down.

Loss: the implicit reward of an answer is beta times how much likelier the policy makes it than the reference does,
summed over its tokens. The loss is the sigmoid of the rejected answer's reward minus that of the chosen one's, plus 1:
each answer is compared with the reference (the anchor, reward 0) and not with the other, so both cannot fall together.
At the first step both models agree and the loss is 1; it lies between 0 and 2.

Differs from the paper: the constant 1 is added, which changes no gradient (TRL does the same, so that losses compare).

Metrics:
- reward_chosen: implicit reward of the chosen answers. Starts at 0 and rises; below 0 the method does not do its work.
- reward_rejected: that of the rejected answers. Starts at 0 and falls. Beyond 5 in size the sigmoid is flat and the
  answer is no longer learnt from.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch import sigmoid


@dataclass(frozen=True)
class Config:
    """Options of anchored preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference (arXiv:2408.06266 section 5.2); smaller values let the policy move
    further."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Sigmoids of both rewards, each on its own."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    loss = sigmoid(-reward_chosen) + sigmoid(reward_rejected)  # (B,); sigmoid(-x) is 1 - sigmoid(x) without rounding
    margin = (reward_chosen - reward_rejected).detach()
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
