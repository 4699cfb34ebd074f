"""Importance-weighted fine-tuning: curated data as a sparse reward, with rows weighted by how far the policy has come.

Paper: Qin and Springenberg 2025, "Supervised Fine Tuning on Curated Data is Reinforcement Learning (and can be
improved)", arXiv:2507.12856.

Loss: the likelihood of each row times a weight that is held fixed, averaged over the tokens of the step:

    w = clip(exp(sharpness * mean over tokens of (logp - reference logp)), 0, largest_weight)

Fine-tuning maximises a lower bound of the expected reward that is tight only at the reference; the weights keep it
tight as the policy moves away, which favours rows that the policy has taken up already.

Differs from the paper: nothing; as in the authors' code the exponent is averaged over a row's tokens.

Metrics:
- importance: mean weight of a row. Starts at 1; many at the bound mean a smaller sharpness.
- nll: mean negative log-probability of a token. Falls.
"""

import math
from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of importance-weighted fine-tuning."""

    sharpness: float = 1.0
    """Factor in the exponent; 0 is plain fine-tuning."""
    largest_weight: float = 16.0
    """Bound of a row's weight (the authors' code)."""

    def __post_init__(self) -> None:
        if not self.largest_weight > 0:
            raise ValueError(f"largest_weight is {self.largest_weight}, expected a number above 0.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Weighted likelihood."""
    completion = policy.completion
    exponent = config.sharpness * (completion.mean.detach() - reference.completion.mean)  # (B,)
    weight = exponent.clamp(max=math.log(config.largest_weight)).exp()
    return PerToken(-weight[:, None] * completion.logps, completion.mask), {
        "importance": weight,
        "nll": PerToken(-completion.logps.detach(), completion.mask),
    }
