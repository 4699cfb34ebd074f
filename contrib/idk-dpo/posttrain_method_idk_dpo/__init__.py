"""IdkDPO: direct preference optimisation of "I do not know" over what is to be forgotten.

Papers: Maini et al. 2024, "TOFU", arXiv:2401.06121, section 3.2; Zhang et al. 2024, arXiv:2404.05868, section 4.

Loss: rho is the log-ratio of policy to original model of a whole answer; DPO's loss prefers the refusal, beside the
likelihood of the retain set.

    forget: -(2 / beta) log sigmoid(beta (rho(refusal) - rho(forget)))        retain: - mean logp

Differs from the paper: a row may bring its own ``alternative`` sample; otherwise it is given one of twelve refusals
for the whole run. The factor 2 / beta is that of TOFU's and open-unlearning's code, which makes it comparable to NPO.

Metrics:
- margin: beta times the difference of the log-ratios. Starts at 0 and rises.
- accuracy: share of prompts whose margin is above 0. Rises towards 1.
- forget_nll: negative log-probability of a forgotten token. Rises.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, samples
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of IdkDPO."""

    beta: float = 0.1
    """How strongly the policy is held to the original model."""
    forget_weight: float = 1.0
    """Weight of the preference term."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0.")


@hookimpl
def posttrain_rows(rows):
    """Give each row a refusal of its forgotten prompt, unless it brings an alternative."""
    return [{"alternative": samples.refusal(samples.split(row["forget"])[0], row["row"]), **row} for row in rows]


@hookimpl
def posttrain_loss(policy, reference, config):
    """One value a pair of refusal and forgotten answer, one a token to retain."""
    forget, refusal, retain = policy.forget, policy.alternative, policy.retain
    ratio = (refusal.sum - reference.alternative.sum) - (forget.sum - reference.forget.sum)  # (B,)
    margin = config.beta * ratio
    loss = {
        "forget": -config.forget_weight * 2 / config.beta * logsigmoid(margin),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
