"""TaiLr: fine-tuning guided by the total variation distance.

Paper: Ji et al. 2023, "Tailoring Language Generation Models under Total Variation Distance", arXiv:2302.13344,
equation 9.

Loss: for a token of probability p, with the weight held fixed:

    -w log p,    w = clip(p / (gamma + (1 - gamma) p), w_min, 1)

Likelihood pays any price for a token that the model thinks impossible, noise included; total variation does not.
gamma = 0 is plain likelihood, gamma = 1 weighs by the probability itself (``dft``).

Differs from the paper: nothing. gamma is to be tuned; the default is one of the paper's values.

Metrics:
- weight: mean weight of a token. Rises.
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of TaiLr."""

    gamma: float = 0.1
    """From 0, likelihood, to 1, the weight is the probability."""
    w_min: float = 0.0
    """Smallest weight (the authors' code: 0 to 0.3); above 0 a run from a poor model still moves."""

    def __post_init__(self) -> None:
        for name in ("gamma", "w_min"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1.")


@hookimpl
def posttrain_loss(policy, config):
    """Weighted likelihood."""
    completion = policy.completion
    p = completion.logps.detach().exp()  # (B, T)
    # a probability that rounds to 0 would divide 0 by 0 with gamma 0
    weight = (p / (config.gamma + (1 - config.gamma) * p).clamp(min=1e-30)).clamp(config.w_min, 1)
    if config.gamma == 0:
        weight = p.new_ones(()).expand_as(p)
    return PerToken(-weight * completion.logps, completion.mask), {
        "weight": PerToken(weight, completion.mask),
        "nll": PerToken(-completion.logps.detach(), completion.mask),
    }
