"""Anchored supervised fine-tuning: likelihood scaled by the token's probability, and closeness to the base model.

Paper: Zhu et al. 2025, "Anchored Supervised Fine-Tuning", arXiv:2509.23753.

Loss, per token of probability p, with the factor held fixed:

    -p log p + kl_weight * KL(reference || policy)

The first term is ``dft``, which drifts away from the base model without an anchor; the second is over the whole
vocabulary.

Differs from the paper: nothing. The direction of the divergence is that of the authors' code; the weight is its
default, the paper reports 0.05 in places.

Metrics:
- weight: mean probability of a trained token. Rises.
- nll: mean negative log-probability of a token. Falls.
- kl: divergence from the base model at a token, in nats. Starts at 0; the weight decides how far it rises.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of anchored supervised fine-tuning."""

    kl_weight: float = 0.1
    """Weight of the divergence (the authors' code)."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence of the policy from the base model at each token."""
    return {"kl": tensors.kl_divergence(reference_logits.log_softmax(-1), logits.log_softmax(-1))}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Scaled likelihood and closeness."""
    completion = policy.completion
    weight = completion.logps.detach().exp()  # (B, T)
    return PerToken(config.kl_weight * completion.kl - weight * completion.logps, completion.mask), {
        "weight": PerToken(weight, completion.mask),
        "nll": PerToken(-completion.logps.detach(), completion.mask),
        "kl": PerToken(completion.kl.detach(), completion.mask),
    }
