"""Gradient difference: gradient ascent on what is to be forgotten, descent on what is to be kept.

Paper: Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121, section 3.2; after Liu
et al. 2022, arXiv:2203.12817.

Loss: the mean log-probability of the forgotten tokens plus the negative mean log-probability of the retained ones,
each averaged over its own tokens.

    loss = forget_weight * mean logp(forget) - retain_weight * mean logp(retain)

Differs from the paper: the two weights, both 1, are options.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises without bound: stop early.
- retain_nll: the same of retained tokens. Stays where it was, or falls.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of gradient difference."""

    forget_weight: float = 1.0
    """Weight of the ascent on the forget set."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""


@hookimpl
def posttrain_loss(policy, config):
    """Ascent and descent, each over its own tokens."""
    forget, retain = policy.forget, policy.retain
    loss = {
        "forget": PerToken(config.forget_weight * forget.logps, forget.mask),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
