"""Proximal supervised fine-tuning: the clipped objective of PPO with the advantage 1 everywhere.

Paper: Zhu et al. 2025, "Proximal Supervised Fine-Tuning", arXiv:2508.17784, equation 5.

Loss: with the ratio r of a token's probability to that under a snapshot of the policy some steps old

    -min(r, clip(r, 1 - clip_low, 1 + clip_high))

A token whose probability has grown by clip_high since the snapshot has no gradient until the next one, so no batch
can pull the policy far; that keeps entropy, and with it room for reinforcement learning afterwards. At a snapshot
r is 1: the loss is -1 and its gradient that of ``sft``.

Differs from the paper: the snapshot is the run's reference, renewed every ``reference_every`` steps, where the paper
renews it with each outer batch. clip_low never acts while the advantage is 1; it is there as in the paper.

Metrics:
- ratio: mean r. Near 1; it starts again at 1 with each snapshot.
- clipped: share of tokens without a gradient. 0.1 to 0.3; more means fewer steps to a snapshot.
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of proximal supervised fine-tuning."""

    clip_low: float = 0.2
    """How far below 1 the ratio may be."""
    clip_high: float = 0.2
    """How far above 1 the ratio may grow before its gradient ends."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """The clipped surrogate, one value a token."""
    view = policy.completion
    ratio = tensors.importance_ratio(view.logps - reference.completion.logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, torch.ones_like(ratio), config.clip_low, config.clip_high)
    return PerToken(loss, view.mask), {
        "ratio": PerToken(ratio.detach(), view.mask),
        "clipped": PerToken((ratio.detach() > 1 + config.clip_high).to(ratio.dtype), view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
