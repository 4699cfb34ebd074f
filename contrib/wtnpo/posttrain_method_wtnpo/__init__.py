"""Weighted token-level negative preference optimisation: the weights of TNPO times those of weighted gradient ascent.

Paper: Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
arXiv:2502.19301, section 4 (WTNPO).

Loss: gradient ascent on the forget set in which a token that has probability p under the policy and q under the
original model weighs w, held fixed; beside it the likelihood of the retain set.

    w = 2 p^(beta + alpha_w) / (p^beta + q^beta),    forget: w logp,    retain: - mean logp

With alpha_w = 0 this is ``tnpo``; where beta is 0 it is ``wga``.

Differs from the paper: the retain term is the likelihood of the retain set, of weight 1; the authors' code has the
divergence from the original model there, or nothing (``--retain-weight 0``).

Metrics:
- weight: mean w of forgotten tokens. Falls towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl

EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """Options of weighted token-level negative preference optimisation."""

    beta: float = 4.0
    """How soon a token's weight falls as it is forgotten (4 in the authors' code)."""
    alpha_w: float = 1.5
    """Power of the probability on top of that (1.5 in the authors' code; the paper tries 1 to 10)."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set; 0 leaves it out."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Weighted ascent and plain descent."""
    forget, retain = policy.forget, getattr(policy, "retain", None)
    logp = forget.logps.detach()  # (B, T)
    p, q = (config.beta * logp).exp(), (config.beta * reference.forget.logps).exp()
    weight = 2 * ((config.beta + config.alpha_w) * logp).exp() / (p + q + EPSILON)
    loss = {"forget": PerToken(weight * forget.logps, forget.mask)}
    metrics = {"weight": PerToken(weight, forget.mask), "forget_nll": PerToken(-logp, forget.mask)}
    if config.retain_weight:
        loss["retain"] = PerToken(-config.retain_weight * retain.logps, retain.mask)
        metrics["retain_nll"] = PerToken(-retain.logps.detach(), retain.mask)
    return loss, metrics
