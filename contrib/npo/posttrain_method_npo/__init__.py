"""Negative preference optimisation: unlearning as DPO with nothing but rejected answers.

Paper: Zhang et al. 2024, "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
arXiv:2404.05868, equation 3; with the retain loss NPO+RT of section 4.

Loss: rho is the log-probability of a forgotten answer under the policy less that under the original model.

    forget: -(2 / beta) log sigmoid(-beta rho)        retain: - mean logp

With beta towards 0 the first is gradient ascent (less a constant); with a finite beta its gradient fades for answers
that are forgotten already, so the model does not collapse. At the start the forget term is (2 / beta) ln 2.

Differs from the paper: the weight of the retain term, 1, is an option. Retained tokens are averaged over the step.

Metrics:
- log_ratio: rho of a forgotten answer. Starts at 0, falls by some nats.
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of negative preference optimisation."""

    beta: float = 0.1
    """How soon the gradient of an answer fades as it is forgotten (section 4.2)."""
    forget_weight: float = 1.0
    """Weight of the forget term."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0. For its limit 0 use grad-diff.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """One value an answer to forget, one a token to retain."""
    forget, retain = policy.forget, policy.retain
    ratio = forget.sum - reference.forget.sum  # (B,)
    loss = {
        "forget": -config.forget_weight * 2 / config.beta * logsigmoid(-config.beta * ratio),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "log_ratio": ratio.detach(),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
