"""D2PO: early tokens count more, by a temporal decay of the log-ratios.

Paper: Shao et al. 2025, "Earlier Tokens Contribute More: Learning Direct Preference Optimization From Temporal Decay
Perspective", arXiv:2502.14340.

Loss: an answer's log-ratio is the sum over its tokens of gamma to the power of the token's place times the token's
log-ratio, the first token having place 1. The loss is DPO's of these sums. What comes late, where long answers differ
by length alone, hardly counts.

Differs from the paper: nothing; the authors' code begins at the power 1, which scales beta by gamma.

Metrics:
- reward_chosen, reward_rejected: beta times the decayed log-ratio of each answer. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of D2PO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    gamma: float = 0.98
    """Decay per token, above 0; 1 is DPO (arXiv:2502.14340: 0.95 to 0.98)."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}, expected a decay above 0 and up to 1.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin of decayed log-ratios."""
    reward_chosen = config.beta * _decayed(policy.chosen, reference.chosen, config.gamma)  # (B,)
    reward_rejected = config.beta * _decayed(policy.rejected, reference.rejected, config.gamma)
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


def _decayed(policy, reference, gamma):
    """Sum ``(B,)`` of gamma^t times the log-ratio of token t, counted from 1."""
    place = torch.arange(1, policy.logps.shape[1] + 1, device=policy.logps.device, dtype=policy.logps.dtype)  # (T,)
    return policy.sum_of(gamma**place * (policy.logps - reference.logps))
