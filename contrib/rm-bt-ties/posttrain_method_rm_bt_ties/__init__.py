"""Bradley-Terry with ties (Rao-Kupper): annotators who cannot decide say something too.

Paper: Liu et al. 2024, "Reward Learning From Preference With Ties", arXiv:2410.05328; the model is Rao and Kupper's
of 1967.

Loss: with d = score(chosen) - score(rejected), a = log theta, and the column ``tie``

    strict: -log sigmoid(d - a)        tie: -log(theta^2 - 1) - log sigmoid(d - a) - log sigmoid(-d - a)

which are the probabilities of win, tie and loss, and sum to 1. theta = 1 knows no ties and is Bradley-Terry.

Differs from the paper: theta is an option and fixed. Rows without ``tie`` are strict.

Metrics:
- accuracy: share of strict pairs scored in the right order.
- margin: mean difference of the scores of strict pairs. Rises above log theta.
- tie_distance: mean absolute difference of the scores of ties. Stays near 0.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of Bradley-Terry with ties."""

    theta: float = 2.0
    """How readily people call a tie; equal answers are one with probability (theta - 1) / (theta + 1)."""

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise ValueError(f"theta is {self.theta}, expected a number above 1. Without ties use the method reward.")


@hookimpl
def posttrain_loss(batch, policy, config):
    """Negative log-probability of what people said, one value a pair."""
    margin = policy.chosen.score - policy.rejected.score  # (B,)
    tie = batch.tie.bool() if "tie" in batch else torch.zeros_like(margin, dtype=torch.bool)
    threshold = math.log(config.theta)
    strict = -logsigmoid(margin - threshold)
    equal = strict - logsigmoid(-margin - threshold) - math.log(config.theta**2 - 1)
    seen = margin.detach()
    nothing = torch.full_like(seen, torch.nan)  # a pair of the other kind does not count
    return torch.where(tie, equal, strict), {
        "accuracy": torch.where(tie, nothing, (seen > 0).to(seen.dtype)),
        "margin": torch.where(tie, nothing, seen),
        "tie_distance": torch.where(tie, seen.abs(), nothing),
    }
