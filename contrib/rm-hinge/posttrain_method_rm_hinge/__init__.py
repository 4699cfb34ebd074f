"""Hinge ranking reward model: pairs whose scores are a margin apart have no gradient.

Paper: Liu et al. 2024, "Skywork-Reward: Bag of Tricks for Reward Modeling in LLMs", arXiv:2410.18451, section 3.2
(the hinge among the losses compared).

Loss: max(0, margin - (score(chosen) - score(rejected))).

Differs from the paper: nothing; where it leaves the margin open it is 1, the classic one.

Metrics:
- accuracy: share of pairs scored in the right order. From 0.5 to 0.6 to 0.8 on human data.
- margin: mean difference of the scores. Rises to about the margin.
- done: share of pairs beyond the margin, which are not learnt from any more. Rises.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of the hinge reward model."""

    distance: float = 1.0
    """Difference of scores from which on a pair is done."""


@hookimpl
def posttrain_loss(policy, config):
    """One value a pair."""
    margin = policy.chosen.score - policy.rejected.score  # (B,)
    return (config.distance - margin).clamp(min=0), {
        "accuracy": (margin > 0).to(margin.dtype),
        "margin": margin.detach(),
        "done": (margin >= config.distance).to(margin.dtype),
    }
