"""ReLU-based preference optimisation: the limit of SimPO in which a pair counts fully or not at all.

Paper: Wu et al. 2025, "RePO: ReLU-based Preference Optimization", arXiv:2503.07426.

Loss: how far the difference of the mean log-probabilities per token of chosen and rejected answer falls short of
gamma. It is what SimPO becomes when beta grows without bound: pairs beyond gamma are filtered out, all others weigh
the same.

Differs from the paper: nothing.

Metrics:
- active: share of pairs that still teach. Falls slowly; 0 is the end of learning.
- margin: difference of mean log-probabilities per token. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import relu


@dataclass(frozen=True)
class Config:
    """Options of RePO."""

    gamma: float = 0.5
    """Difference of mean log-probabilities from which on a pair is learnt (arXiv:2503.07426: 0.2 to 1)."""


@hookimpl
def posttrain_loss(policy, config):
    """How far the difference falls short of gamma."""
    margin = policy.chosen.mean - policy.rejected.mean  # (B,)
    loss = relu(config.gamma - margin)  # (B,)
    return loss, {
        "active": (margin < config.gamma).to(margin.dtype),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
