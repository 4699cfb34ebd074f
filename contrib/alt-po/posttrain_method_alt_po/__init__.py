"""AltPO: forget an answer by preferring other plausible answers to the same prompt over it.

Paper: Mekala et al. 2024, "Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language
Models", arXiv:2409.13474.

Loss: rho is the log-ratio of policy to original model of a whole answer. The ``alternative`` of a row is an answer of
the same kind with other facts, written by the original model before the run (the paper's five a prompt are five rows).

    forget: -(2 / beta) log sigmoid(beta (rho(alternative) - rho(forget)))        retain: - mean logp

With a refusal as alternative this is ``idk-dpo``; a plausible answer leaves the model fluent where it has forgotten.

Differs from the paper: nothing in the loss; the factor 2 / beta is that of the authors' code. Making the alternatives
is up to the user: ``posttrain generate`` with a prompt that asks for another answer.

Metrics:
- margin: beta times the difference of the log-ratios. Starts at 0 and rises.
- accuracy: share of prompts whose margin is above 0. Rises towards 1.
- forget_nll: negative log-probability of a forgotten token. Rises.
- alternative_nll: the same of the alternatives' tokens. Falls, or rises less.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of AltPO."""

    beta: float = 0.1
    """How strongly the policy is held to the original model (the paper: 0.05 to 0.5)."""
    forget_weight: float = 1.0
    """Weight of the preference term."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set (the paper: 1 to 5)."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """One value a pair of alternative and forgotten answer, one a token to retain."""
    forget, other, retain = policy.forget, policy.alternative, policy.retain
    ratio = (other.sum - reference.alternative.sum) - (forget.sum - reference.forget.sum)  # (B,)
    margin = config.beta * ratio
    loss = {
        "forget": -config.forget_weight * 2 / config.beta * logsigmoid(margin),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "alternative_nll": PerToken(-other.logps.detach(), other.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
