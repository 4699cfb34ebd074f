"""MOPD: on-policy distillation as in MiMo-V2-Flash, gated by how well the sampler agrees with the trainer.

Paper: Xiaomi LLM-Core 2026, "MiMo-V2-Flash Technical Report", arXiv:2601.02780, equation 8; NeMo-RL's implementation.

Loss in words: the student answers, a teacher gives each token its log-probability q. A token is worth what that lies
above the student's own o, and orm_alpha times the completion's advantage by its reward (less the group's mean, in
standard deviations). What the sampler thought, b, may differ from o by its arithmetic or its version; the ratio is the
weight, and tokens whose ratio is outside of the gate count nothing:

    A_t = (q_t - o_t) + orm_alpha * A
    loss = -w_t A_t log s(token),   w_t = exp(o_t - b_t) within [icepop_min, icepop_max], else 0

averaged over all tokens of the step; weights and advantages have no gradient.

Differs from the paper: one teacher. The paper has one for each domain and asks that of the prompt's own: train a
domain at a time.

Metrics:
- reverse_kl: log-probability of a token under the student less that under the teacher, in nats. Falls towards 0.
- weight: of a token. 1 where sampler and trainer agree.
- gated: share of tokens outside of the gate. Near 0; otherwise the sampler is too old, or computes differently.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    icepop_min: float = 0.5
    """Smallest ratio of trainer to sampler that counts (NeMo-RL)."""
    icepop_max: float = 5.0
    """Largest ratio of trainer to sampler that counts (NeMo-RL)."""
    orm_alpha: float = 0.0
    """Weight of the outcome reward (NeMo-RL: 0; above 0 needs rewards)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation."""

    def __post_init__(self) -> None:
        if not 0 <= self.icepop_min <= 1 <= self.icepop_max:
            raise ValueError(f"the gate is {self.icepop_min} to {self.icepop_max}, expected bounds around 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """What the teacher thinks of each token, and the outcome of the whole; and the weights: (B, T)."""
    mask = rollouts.mask
    outcome = tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)  # (B,)
    worth = rollouts.teacher_logps - rollouts.old_logps + config.orm_alpha * outcome[:, None]
    ratio = tensors.importance_ratio(rollouts.old_logps - rollouts.sampled_logps).nan_to_num(1.0)
    within = (ratio >= config.icepop_min) & (ratio <= config.icepop_max)
    weight = torch.where(within, ratio, 0.0)
    return {"advantages": torch.where(mask, worth, 0.0), "weights": torch.where(mask, weight, 0.0)}


@hookimpl
def posttrain_loss(batch, policy):
    """Weighted policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    metrics = {
        "reverse_kl": view.logps.detach() - batch.teacher_logps,
        "weight": batch.weights,
        "gated": (batch.weights == 0).to(view.logps.dtype),
    }
    return PerToken(-batch.weights * advantages * view.logps, view.mask), {
        name: PerToken(values, view.mask) for name, values in metrics.items()
    }
