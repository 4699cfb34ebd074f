"""DPO under other divergences: the reward of an answer is the derivative of the divergence that holds the policy
back.

Paper: Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
Constraints", arXiv:2309.16240.

Loss: the policy that maximises reward less beta times an f-divergence from the reference has reward beta f'(u), u
being how much likelier the policy makes the answer, up to a constant. The loss is the negative log-sigmoid of the
difference of the two answers' f'(u), times beta. With log u the log-ratio:

reverse_kl        log u            (DPO)
forward_kl        1 - 1 / u
js_divergence     log(2 u / (1 + u))
alpha_divergence  (u^(alpha - 1) - 1) / (alpha - 1)

Differs from the paper: alpha is in TRL's notation, one minus the paper's. Exponents above 50 count as 50, which
float32 can hold: an answer that the policy made e^50 times less likely has no gradient under forward_kl.

Metrics:
- reward_chosen, reward_rejected: beta times f'(u) of each answer. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of DPO under an f-divergence."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "js_divergence"
    """What the pull is measured by."""
    alpha: float = 0.5
    """Order of the alpha divergence: 1 is reverse_kl, towards 0 it nears forward_kl."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the difference of the divergence's derivatives."""
    reward_chosen = config.beta * _derivative(policy.chosen.sum - reference.chosen.sum, config)  # (B,)
    reward_rejected = config.beta * _derivative(policy.rejected.sum - reference.rejected.sum, config)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _derivative(ratio, config):
    """f'(u) of the log-ratio log u ``(B,)``, up to a constant."""
    if config.divergence == "forward_kl":
        return -torch.expm1((-ratio).clamp(max=50))
    if config.divergence == "js_divergence":
        return logsigmoid(ratio) + torch.tensor(2.0).log().to(ratio)
    if config.divergence == "alpha_divergence" and config.alpha != 1:
        order = config.alpha - 1
        return torch.expm1((order * ratio).clamp(max=50)) / order
    return ratio
