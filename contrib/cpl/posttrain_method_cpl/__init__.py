"""Contrastive preference learning: prefer the answer whose tokens have the higher advantage, without reward or
reference.

Paper: Hejna et al. 2023, "Contrastive Preference Learning: Learning from Human Feedback without RL", arXiv:2310.13639.

Loss: under a model in which people prefer the segment with less regret, the score of an answer is alpha times the
discounted sum of its tokens' log-probabilities. The loss is the negative log-sigmoid of the chosen answer's score less
``bias`` times the rejected one's: with a bias below 1 the loss is lower for likely answers, which keeps the policy
within the data. ``sft_weight`` adds the mean negative log-likelihood of both answers' tokens.

Differs from the paper: segments of robot control are answers here, and actions tokens. lambda is called ``bias``;
behaviour cloning is an option, off by default, as in the authors' code.

Metrics:
- margin: score of the chosen answer less that of the rejected one, without bias. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of CPL."""

    alpha: float = 0.1
    """Scale of the scores, the temperature of the policy's advantage."""
    bias: float = 0.5
    """Weight of the rejected answer's score, above 0 and up to 1; 1 is no bias."""
    gamma: float = 1.0
    """Discount per token."""
    sft_weight: float = 0.0
    """Weight of the likelihood of both answers."""

    def __post_init__(self) -> None:
        if not 0 < self.bias <= 1:
            raise ValueError(f"bias is {self.bias}, expected a weight above 0 and up to 1.")


@hookimpl
def posttrain_loss(policy, config):
    """Biased logistic contrast of the scores."""
    chosen, rejected = (config.alpha * _discounted(view, config.gamma) for view in (policy.chosen, policy.rejected))
    margin = chosen - rejected  # (B,)
    loss = {"preference": -logsigmoid(chosen - config.bias * rejected)}  # (B,)
    if config.sft_weight:
        loss["nll"] = -config.sft_weight * 0.5 * (policy.chosen.mean + policy.rejected.mean)  # (B,)
    return loss, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _discounted(view, gamma):
    """Discounted sum ``(B,)`` of log-probabilities."""
    place = torch.arange(view.logps.shape[1], device=view.logps.device, dtype=view.logps.dtype)  # (T,)
    return view.sum_of(gamma**place * view.logps)
