"""Hinge preference optimisation: a pair stops teaching once its margin is large enough.

Paper: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", arXiv:2309.06657 (hinge-
norm).

Loss: the margin is that of DPO, beta times the difference of the two log-ratios of policy to reference. The loss is
how far it falls short of 1: 1 at the first step, 0 from a margin of 1 on, with a constant gradient between.

Differs from the paper: the paper also draws new pairs from the optimal policy by rejection sampling and has them
labelled; here the pairs are those of the data. Its gamma is called ``beta``. Learning rate and batch size are DPO's.

Metrics:
- learnt: share of pairs beyond the margin, which have no gradient. From 0; near 1 there is nothing left to learn.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import relu


@dataclass(frozen=True)
class Config:
    """Options of hinge preference optimisation."""

    beta: float = 0.05
    """Inverse of the log-ratio margin at which a pair is learnt, gamma in arXiv:2309.06657."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """How far the margin falls short of 1."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = relu(1 - margin)  # (B,)
    return loss, {
        "learnt": (margin >= 1).to(margin.dtype),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
