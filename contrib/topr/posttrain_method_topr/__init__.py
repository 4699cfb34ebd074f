"""TOPR: off-policy REINFORCE whose importance ratios are tapered, differently for good and for bad samples.

Paper: Le Roux et al. 2025, "Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
arXiv:2503.14286, equation 6.

Loss in words: a completion is worth A = +1 where its reward is above threshold and -1 elsewhere. Good ones are learnt
in full, as in supervised learning, however unlikely they are by now. Bad ones are lowered with the probability ratio
of the whole completion to the policy that sampled it, but never with more than 1: once they are unlikely they are left
alone.

    loss = -weight * A * sum of log p,   weight = clip(ratio, taper of good or bad ones), held constant

averaged over completions.

Differs from the paper: the estimator there multiplies by the reward; here its size is dropped, and only whether it is
above the threshold counts. Its balance of good and bad samples ("effective proportion of positives") is the
data's affair: choose prompts that are solved sometimes.

Metrics:
- weight: of bad completions. 1 in the first update of a batch; falls as they become unlikely.
- correct: share of good completions. Rises.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    threshold: float = 0.0
    """Completions with a reward above this are good."""
    positive_taper: tuple[float, ...] = (1.0, 1.0)
    """Bounds of the ratio of good completions (the paper: always 1)."""
    negative_taper: tuple[float, ...] = (0.0, 1.0)
    """Bounds of the ratio of bad completions (the paper)."""

    def __post_init__(self) -> None:
        for name in ("positive_taper", "negative_taper"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise ValueError(f"{name} is {bounds}, expected a lower and an upper bound from 0")


@hookimpl
def posttrain_advantages(rewards, config):
    """+1 or -1: (B,)."""
    sign = torch.where(rewards > config.threshold, 1.0, -1.0).to(rewards.dtype)
    return torch.where(rewards.isnan(), 0.0, sign)  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy, config):
    """Tapered policy gradient of each completion."""
    view = policy.completion
    ratio = tensors.importance_ratio(view.sum_of(view.logps - batch.old_logps)).detach()  # (B,)
    good = batch.advantages >= 0
    weight = torch.where(good, ratio.clamp(*config.positive_taper), ratio.clamp(*config.negative_taper))
    return -weight * batch.advantages * view.sum, {
        "weight": torch.where(good, torch.nan, weight),
        "correct": good.to(weight.dtype),
    }
