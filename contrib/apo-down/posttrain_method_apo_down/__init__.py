"""Anchored preference optimisation, down: both answers become less likely, the rejected one more so.

Paper: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive Revisions: Addressing
Underspecification in Alignment", arXiv:2408.06266, equation 8. For data whose chosen answers are worse than what the
model writes itself, so that it should learn the difference and not the answers; where they are better, use apo-zero.

Loss: the implicit reward of an answer is beta times how much likelier the policy makes it than the reference does,
summed over its tokens. The loss is the sigmoid of the chosen answer's reward, which pushes it below the reference (the
anchor, reward 0), minus the sigmoid of the chosen reward minus the rejected one, plus 1. At the first step both models
agree and the loss is 1; it lies between 0 and 2.

Differs from the paper: the constant 1 is added, which changes no gradient (TRL does the same, so that losses compare).

Metrics:
- reward_chosen: implicit reward of the chosen answers. Starts at 0 and falls slowly; the method means it to.
- reward_rejected: that of the rejected answers. Starts at 0 and falls faster.
- margin: their difference. Starts at 0 and rises; beyond 5 the sigmoid is flat and the pair is no longer learnt from.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy. What the model writes instead is
  not in the data: look at its samples, and stop when chosen answers have become rare.
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
    """Sigmoid of the chosen answer's reward, and of the margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = sigmoid(reward_chosen) + sigmoid(-margin)  # (B,); sigmoid(-x) is 1 - sigmoid(x) without rounding
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
