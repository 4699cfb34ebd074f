"""Focal ranking reward model: the harder a pair, the more it weighs.

Paper: Cai et al. 2024, "InternLM2 Technical Report", arXiv:2403.17297, section 4.3.1; among the losses compared in
Liu et al. 2024 (Skywork-Reward), arXiv:2410.18451.

Loss: with p = sigmoid(score(chosen) - score(rejected)) and its gradient through both factors

    -(1 - 2 max(0, p - 1/2))^gamma log p  [- barrier (log(bound + r) + log(bound - r)) for both scores r]

Differs from the paper: its barrier, which holds scores within -5 and 5, is off by default (``barrier`` 0.02 there).

Metrics:
- accuracy: share of pairs scored in the right order. From 0.5 to 0.6 to 0.8 on human data.
- margin: mean difference of the scores. Rises less than without the factor.
- focus: mean of the factor. Falls from 1.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid

BOUND = 5.0


@dataclass(frozen=True)
class Config:
    """Options of the focal reward model."""

    gamma: float = 2.0
    """How quickly a pair loses its weight as it is ranked well; 0 is Bradley-Terry."""
    barrier: float = 0.0
    """Weight of the logarithmic barrier at scores of -5 and 5 (the paper: 0.02)."""

    def __post_init__(self) -> None:
        if not (self.gamma == 0 or self.gamma >= 1):
            raise ValueError(f"gamma is {self.gamma}, expected 0 or at least 1: between, certainty has no gradient.")


@hookimpl
def posttrain_loss(policy, config):
    """One value a pair."""
    chosen, rejected = policy.chosen.score, policy.rejected.score  # (B,)
    margin = chosen - rejected
    focus = (1 - 2 * (margin.sigmoid() - 0.5).clamp(min=0)).clamp(min=0) ** config.gamma
    loss = -focus * logsigmoid(margin)
    if config.barrier:
        for score in (chosen, rejected):
            # beyond the bound the logarithm does not exist: the slope just before it goes on
            room = [(BOUND + sign * score).clamp(min=1e-3) for sign in (1, -1)]
            loss = loss - config.barrier * (room[0].log() + room[1].log())
    return loss, {
        "accuracy": (margin > 0).to(margin.dtype),
        "margin": margin.detach(),
        "focus": focus.detach(),
    }
