"""Importance-weighted on-policy distillation: where student and teacher first part, the most is learnt.

Paper: arXiv:2606.22600 (2026), as implemented in TRL's experimental IWOPDTrainer.

Loss in words: the student answers, the teacher gives each of the tokens its log-probability q. A token is worth what q
lies above the log-probability b that the student sampled it with. Once an answer has gone astray, the rest of the
teacher's objections follow from the first one; so a token counts more the smaller the share of the answer's whole
disagreement that came before it:

    a_t = q_t - b_t,   w_t = 1 + early_weight * (1 - (sum over k < t of |a_k|) / (sum over k of |a_k|))
    loss = mean over all tokens of the step of  -w_t a_t log s(token)

Differs from the paper: nothing known; there is no ratio, so take one update per batch of answers.

Metrics:
- reverse_kl: log-probability of a token under the student less that under the teacher, which estimates
  KL(student || teacher) per token in nats. Falls towards 0.
- weight: w of a token. Between 1 and 1 + early_weight.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    early_weight: float = 0.5
    """How much more the first token counts than the last (TRL: iw_opd_gamma). 0 is plain on-policy distillation."""

    def __post_init__(self) -> None:
        if self.early_weight < 0:
            raise ValueError(f"early_weight is {self.early_weight}, expected 0 or more")


@hookimpl
def posttrain_advantages(rollouts, config):
    """The teacher's opinion of each token, weighted: (B, T)."""
    mask = rollouts.mask
    gap = torch.where(mask, rollouts.teacher_logps - rollouts.sampled_logps, 0.0)  # (B, T)
    size = gap.abs()
    before = size.cumsum(1) - size  # (B, T): disagreement of earlier tokens
    weight = 1 + config.early_weight * (1 - before / (size.sum(1, keepdim=True) + 1e-8))
    return {"advantages": weight * gap, "weight": torch.where(mask, weight, 0.0)}


@hookimpl
def posttrain_loss(batch, policy):
    """Policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    metrics = {"reverse_kl": view.logps.detach() - batch.teacher_logps}
    metrics["weight"] = batch.get("weight", torch.ones_like(view.logps))
    return PerToken(-advantages * view.logps, view.mask), {
        name: PerToken(values, view.mask) for name, values in metrics.items()
    }
