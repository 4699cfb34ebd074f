"""Probability-based objectives: beyond the log-likelihood for models that know the domain.

Paper: Li et al. 2025, "Beyond Log Likelihood: Probability-Based Objectives for Supervised Fine-Tuning across the Model
Capability Continuum", arXiv:2510.00526.

Loss: for a token of probability p: (1 - p^alpha) / alpha. The limit alpha = 0 is -log p; alpha = 1 is 1 - p, whose
gradient by log p is -p (``dft`` has the same), alpha = 10 learns only from tokens that are nearly certain. The larger
alpha, the less an improbable token counts: good for a strong model, bad for one that has to learn new things.

Differs from the paper: its variants that cut off tokens below a threshold are left out.

Metrics:
- probability: mean probability of a token. Rises.
- nll: mean negative log-probability of a token. Falls, or rises where improbable tokens are given up.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of the probability-based objective."""

    alpha: float = 1.0
    """Power of the probability; towards 0 the loss becomes the log-likelihood."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, expected a number above 0. Its limit 0 is the method sft.")


@hookimpl
def posttrain_loss(policy, config):
    """One minus the power, over alpha."""
    view = policy.completion
    loss = -torch.expm1(config.alpha * view.logps) / config.alpha  # (B, T)
    return PerToken(loss, view.mask), {
        "probability": PerToken(view.logps.detach().exp(), view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
