"""Dynamic fine-tuning: likelihood whose gradient is scaled by the token's own probability.

Paper: Wu et al. 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
arXiv:2508.05629, equation 9.

Loss: for a token of probability p, with p held fixed: -p log p. Plain fine-tuning is a policy gradient whose implied
reward is 1 / p, so single improbable tokens dominate the update; multiplying by p makes every token's reward 1.

Differs from the paper: nothing.

Metrics:
- weight: mean probability of a trained token. Rises.
- nll: mean negative log-probability of a token. Falls, though not as far as in ``sft``: it is not what is minimised.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Dynamic fine-tuning has no options of its own."""


@hookimpl
def posttrain_loss(policy):
    """Likelihood scaled by the probability."""
    completion = policy.completion
    weight = completion.logps.detach().exp()  # (B, T)
    return PerToken(-weight * completion.logps, completion.mask), {
        "weight": PerToken(weight, completion.mask),
        "nll": PerToken(-completion.logps.detach(), completion.mask),
    }
