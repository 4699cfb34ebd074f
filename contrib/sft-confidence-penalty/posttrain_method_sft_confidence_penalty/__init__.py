"""Confidence penalty: fine-tuning with a bonus for the entropy of the predictions.

Paper: Pereyra et al. 2017, "Regularizing Neural Networks by Penalizing Confident Output Distributions",
arXiv:1701.06548, equation 1.

Loss, per token: -log p - beta H, with the entropy H of the next-token distribution in nats and its gradient.

Differs from the paper: nothing; its variants with annealing and with a threshold of the entropy are left out.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- entropy: of the next-token distribution, in nats. Falls less than in ``sft``.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of the confidence penalty."""

    beta: float = 0.1
    """Weight of the entropy (section 4.3 of the paper: 0.1 for language modelling; 2 to 2.5 for translation)."""


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token's distribution, with gradient."""
    logps = logits.log_softmax(-1)  # (n, V)
    return {"spread": -(logps.exp() * logps).sum(-1)}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Likelihood and entropy."""
    view = policy.completion
    return PerToken(-view.logps - config.beta * view.spread, view.mask), {
        "nll": PerToken(-view.logps.detach(), view.mask),
        "entropy": PerToken(view.spread.detach(), view.mask),
    }
