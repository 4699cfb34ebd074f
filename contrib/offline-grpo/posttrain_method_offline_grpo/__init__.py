"""Offline GRPO: group-relative advantages over fixed groups of answers, with the reference as the old policy.

Papers: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, equation 3; offline as in HALOs (Ethayarajh et al. 2024,
arXiv:2402.01306).

Loss, per token, with the advantage A of its answer and the ratio r = p / p_reference:

    -min(r A, clip(r, 1 - clip, 1 + clip) A) + beta (1 / r - 1 + log r),    A = (score - mean) / (std + floor)

Mean and population standard deviation are those of ``group_scores``, the scores of all answers to the prompt; of
rows without this column, those of the step.

Differs from the paper: answers are not sampled by the policy, and the old policy is the reference, so the ratio
leaves its bounds for good once the policy has moved: what is gained is limited by ``clip``.

Metrics:
- advantage: mean advantage. About 0.
- clipped: share of tokens without a gradient from the first term. Rises; near 1 the run has learnt what it can.
- kl: estimated divergence from the reference at a token, in nats. Starts at 0.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of offline GRPO."""

    clip: float = 0.2
    """How far a token's ratio may be from 1."""
    beta: float = 0.01
    """Weight of the divergence from the reference."""
    floor: float = 0.01
    """Added to the standard deviation of a group's scores (HALOs)."""


@hookimpl
def posttrain_annotate(examples, config):
    """The advantage of each answer within its group."""
    every = [float(example.columns["score"]) for example in examples]
    advantages = []
    for example, score in zip(examples, every, strict=True):
        group = torch.tensor(example.columns.get("group_scores") or every, dtype=torch.float64)
        spread = group.std(correction=0) + config.floor
        advantages.append((score - group.mean()) / spread)
    return {"advantage": torch.stack(advantages)}  # (B,)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped surrogate and divergence, one value a token."""
    view = policy.completion
    advantage = batch.advantage.to(view.logps)[:, None]  # (B, 1)
    ratio = tensors.importance_ratio(view.logps - reference.completion.logps)  # (B, T)
    kl = tensors.kl_k3(view.logps, reference.completion.logps)
    loss = tensors.clipped_surrogate(ratio, advantage, config.clip, config.clip)
    clipped = torch.where(advantage > 0, ratio > 1 + config.clip, ratio < 1 - config.clip)
    return PerToken(loss + config.beta * kl, view.mask), {
        "advantage": batch.advantage,
        "clipped": PerToken(clipped.to(ratio.dtype), view.mask),
        "kl": PerToken(kl.detach(), view.mask),
    }
