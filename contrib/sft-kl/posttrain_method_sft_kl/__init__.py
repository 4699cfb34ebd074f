"""Fine-tuning with an anchor: likelihood, and closeness to the base model's next-token distribution.

Paper: Zhu et al. 2025, "Anchored Supervised Fine-Tuning", arXiv:2509.23753 (the baseline SFT with KL).

Loss, per token: -log p + kl_weight * KL(reference || policy), the divergence over the whole vocabulary.

Differs from the paper: nothing. The direction is that of the authors' code, the reference first.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- kl: divergence from the base model at a token, in nats. Starts at 0 and rises; the weight decides how far.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of fine-tuning with an anchor."""

    kl_weight: float = 0.1
    """Weight of the divergence (the authors' code)."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence of the policy from the base model at each token."""
    return {"kl": tensors.kl_divergence(reference_logits.log_softmax(-1), logits.log_softmax(-1))}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Likelihood and closeness."""
    completion = policy.completion
    return PerToken(config.kl_weight * completion.kl - completion.logps, completion.mask), {
        "nll": PerToken(-completion.logps.detach(), completion.mask),
        "kl": PerToken(completion.kl.detach(), completion.mask),
    }
