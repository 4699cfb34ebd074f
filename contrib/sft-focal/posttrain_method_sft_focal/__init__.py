"""Focal fine-tuning: likelihood that looks away from tokens which are predicted well already.

Paper: Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, equation 4.

Loss: for a token of probability p: -(1 - p)^gamma log p. The gradient goes through both factors. gamma = 0 is plain
fine-tuning.

Differs from the paper: tokens of a vocabulary in place of classes of boxes; no weights of classes (alpha).

Metrics:
- focus: mean (1 - p)^gamma of a token. Falls.
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of focal fine-tuning."""

    gamma: float = 2.0
    """Power of a token's missing probability (section 4 of the paper: 2)."""

    def __post_init__(self) -> None:
        if not (self.gamma == 0 or self.gamma >= 1):
            raise ValueError(f"gamma is {self.gamma}, expected 0 or at least 1: between, certainty has no gradient.")


@hookimpl
def posttrain_loss(policy, config):
    """Likelihood times missing probability."""
    view = policy.completion
    missing = -torch.expm1(view.logps)  # (B, T), 1 - p
    focus = missing**config.gamma
    return PerToken(-focus * view.logps, view.mask), {
        "focus": PerToken(focus.detach(), view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
