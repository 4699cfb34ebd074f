"""Weighted gradient ascent: each token is forgotten in proportion to how likely it still is.

Paper: Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
arXiv:2502.19301, section 4 (WGA).

Loss: gradient ascent on the forget set in which a token of probability p weighs p^beta, held fixed; beside it the
likelihood of the retain set. Ascent alone has its largest gradients on tokens that are as good as forgotten, which is
what breaks models; here they vanish.

    forget: p^beta logp        retain: - mean logp

Differs from the paper: the two weights, both 1, are options.

Metrics:
- weight: mean p^beta of forgotten tokens. Falls from about the model's mean probability towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of weighted gradient ascent."""

    beta: float = 1.0
    """Power of the probability; 0 is gradient ascent (the paper tries 0.1 to 7)."""
    forget_weight: float = 1.0
    """Weight of the ascent on the forget set."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""


@hookimpl
def posttrain_loss(policy, config):
    """Weighted ascent and plain descent."""
    forget, retain = policy.forget, policy.retain
    weight = (config.beta * forget.logps.detach()).exp()  # (B, T)
    loss = {
        "forget": PerToken(config.forget_weight * weight * forget.logps, forget.mask),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "weight": PerToken(weight, forget.mask),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
