"""MixCE: a mixture of forward and reverse cross-entropy.

Paper: Zhang et al. 2023, "MixCE: Training Autoregressive Language Models by Mixing Forward and Reverse
Cross-Entropies", arXiv:2305.16958, equation 9.

Loss: for a token of probability p, with the factor held fixed: -(eta + (1 - eta) p) log p. The second part
approximates the reverse cross-entropy, which asks whether people would say what the model says; likelihood alone
spreads over what they would not. eta = 1 is plain fine-tuning, eta = 0 is ``dft``.

Differs from the paper: nothing. It tunes eta on development data; the default is in the middle.

Metrics:
- weight: mean factor of a token. Rises.
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of MixCE."""

    eta: float = 0.5
    """Share of the forward cross-entropy, 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a share from 0 to 1.")


@hookimpl
def posttrain_loss(policy, config):
    """Weighted likelihood."""
    view = policy.completion
    weight = config.eta + (1 - config.eta) * view.logps.detach().exp()  # (B, T)
    return PerToken(-weight * view.logps, view.mask), {
        "weight": PerToken(weight, view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
