"""Token-level negative preference optimisation: NPO's fading weight, but for each token alone.

Paper: Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
arXiv:2502.19301, section 4 (TNPO).

Loss: gradient ascent on the forget set in which a token that has probability p under the policy and q under the
original model weighs w, held fixed; beside it the likelihood of the retain set.

    w = 2 p^beta / (p^beta + q^beta),    forget: w logp,    retain: - mean logp

In NPO the weight is one for the whole answer; a few tokens that are forgotten quickly then save all others.

Differs from the paper: the retain term is the likelihood of the retain set, of weight 1; the authors' code has the
divergence from the original model there, or nothing (``--retain-weight 0``). The denominator has the 1e-5 of that code.

Metrics:
- weight: mean w of forgotten tokens. Starts at 1, falls towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl

EPSILON = 1e-5


@dataclass(frozen=True)
class Config:
    """Options of token-level negative preference optimisation."""

    beta: float = 4.0
    """How soon a token's weight falls as it is forgotten (4 in the authors' code; the paper tries 0.1 to 5)."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set; 0 leaves it out."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Weighted ascent and plain descent."""
    forget, retain = policy.forget, getattr(policy, "retain", None)
    p = (config.beta * forget.logps.detach()).exp()  # (B, T)
    q = (config.beta * reference.forget.logps).exp()
    weight = 2 * p / (p + q + EPSILON)
    loss = {"forget": PerToken(weight * forget.logps, forget.mask)}
    metrics = {"weight": PerToken(weight, forget.mask), "forget_nll": PerToken(-forget.logps.detach(), forget.mask)}
    if config.retain_weight:
        loss["retain"] = PerToken(-config.retain_weight * retain.logps, retain.mask)
        metrics["retain_nll"] = PerToken(-retain.logps.detach(), retain.mask)
    return loss, metrics
