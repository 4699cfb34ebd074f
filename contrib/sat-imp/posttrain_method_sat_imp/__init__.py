"""SatImp: gradient ascent whose weights join saturation (is it forgotten yet?) and importance (does it matter?).

Paper: Yang et al. 2025, "Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning", arXiv:2505.11953.

Loss: a forgotten token of probability p weighs w, held fixed; beside it the likelihood of the retain set.

    w = p^saturation (1 - p)^importance,    forget: w logp,    retain: - mean logp

The first factor leaves alone what is forgotten already; the second what the model would say in any case, such as the
rest of a word that has begun.

Differs from the paper: its beta_1 and beta_2 are called by what they do.

Metrics:
- weight: mean w of forgotten tokens. Falls towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of SatImp."""

    saturation: float = 5.0
    """Power of the token's probability (open-unlearning)."""
    importance: float = 1.0
    """Power of its complement (open-unlearning)."""
    forget_weight: float = 0.1
    """Weight of the ascent on the forget set (open-unlearning)."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""


@hookimpl
def posttrain_loss(policy, config):
    """Weighted ascent and plain descent."""
    forget, retain = policy.forget, policy.retain
    p = forget.logps.detach().exp()  # (B, T)
    weight = p**config.saturation * (1 - p).clamp(min=0) ** config.importance
    loss = {
        "forget": PerToken(config.forget_weight * weight * forget.logps, forget.mask),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "weight": PerToken(weight, forget.mask),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
