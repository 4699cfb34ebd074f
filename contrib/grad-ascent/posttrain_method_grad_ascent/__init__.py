"""Gradient ascent: forget by making the completions of the forget set less likely.

Paper: Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121, section 3.2; before it
Jang et al. 2022, arXiv:2210.01504.

Loss: the log-probability of a token of the forget set, averaged over all of them: likelihood, to be lowered. Nothing
bounds it from below, so a run that goes on too long destroys the model. Train for few steps, watch forget_nll, and
compare with ``grad-diff`` or ``npo``.

Differs from the paper: nothing. The rows' retain samples are not read.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises; above that of random tokens (the logarithm of the
  vocabulary's size) nothing more is forgotten and the model only breaks.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Gradient ascent has no options of its own."""


@hookimpl
def posttrain_loss(policy):
    """Log-probability of the forgotten tokens."""
    forget = policy.forget
    return PerToken(forget.logps, forget.mask), {"forget_nll": PerToken(-forget.logps.detach(), forget.mask)}
