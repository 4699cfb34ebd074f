"""SimNPO: negative preference optimisation by the length-normalised likelihood, without a reference.

Paper: Fan et al. 2024, "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
arXiv:2410.07163, equation 4.

Loss: for a forgotten answer of mean log-probability m per token

    forget: -(2 / beta) log sigmoid(-beta m - beta delta)        retain: - mean logp

Long and short answers, and answers that the original model knew well or badly, are forgotten alike; in NPO the
reference decides how much of the step each of them gets.

Differs from the paper: its margin gamma stands outside of beta, as here ``beta * delta``. Weights and beta are those
of the reference implementation in open-unlearning: forgetting weighs 0.125.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises, slower and slower.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of SimNPO."""

    beta: float = 4.5
    """How soon the gradient of an answer fades as it is forgotten (the paper: 2.5 to 5.5)."""
    delta: float = 0.0
    """Negative log-probability per token that an answer is asked to have beyond 0 (the paper's gamma / beta: 0)."""
    forget_weight: float = 0.125
    """Weight of the forget term (open-unlearning)."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0.")


@hookimpl
def posttrain_loss(policy, config):
    """One value an answer to forget, one a token to retain."""
    forget, retain = policy.forget, policy.retain
    beyond = -forget.mean - config.delta  # (B,)
    loss = {
        "forget": -config.forget_weight * 2 / config.beta * logsigmoid(config.beta * beyond),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
