"""On-policy distillation: the student answers, and each token is rewarded by how much likelier the teacher finds it.

Source: Thinking Machines Lab 2025, "On-Policy Distillation", thinkingmachines.ai/blog/on-policy-distillation; the
objective is that of Agarwal et al. 2023, arXiv:2306.13649, at beta 1, estimated from the sampled tokens alone.

Loss in words: the teacher reads the student's answers and gives each of their tokens a log-probability, which is all
that is asked of it. A token is worth what the teacher's log-probability q lies above the one o that the student had
when it sampled it; on average this is minus the divergence KL(student || teacher). The student's gradient is that of
an importance-weighted policy gradient, averaged over all tokens of the step:

    A_t = kl_coef * sum over k >= t of kl_discount^(k - t) (q_k - o_k)  +  task_weight * (reward - mean of its group)
    loss = mean over tokens of  -exp(l_t - o_t) A_t

Differs from the paper: nothing with the default options. ``epsilon`` clips the ratio as PPO does; task_weight adds a
task's own rewards, which are otherwise only logged.

Metrics:
- reverse_kl: log-probability of a token under the student less that under the teacher, which estimates
  KL(student || teacher) per token in nats. Falls towards 0; rising for long means too high a learning rate.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
- advantage_size: mean absolute advantage of a token. Falls with the divergence; 0 means nothing is left to learn.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    kl_coef: float = 1.0
    """Weight of the teacher's opinion (the blog and its recipe)."""
    kl_discount: float = 0.0
    """How much a token answers for those after it, from 0 (only for itself, the blog) to 1 (for all of them)."""
    task_weight: float = 0.0
    """Weight of the rewards, where there are any, compared within a group (the blog: none)."""
    epsilon: float | None = None
    """How far the ratio may leave 1 before it is clipped, as in PPO (0.2 there). None: no clipping, as in the blog."""

    def __post_init__(self) -> None:
        if not 0 <= self.kl_discount <= 1:
            raise ValueError(f"kl_discount is {self.kl_discount}, expected a number from 0 to 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """What the teacher thinks of each token, and what the task thinks of the whole: (B, T)."""
    mask = rollouts.mask
    gap = torch.where(mask, rollouts.teacher_logps - rollouts.old_logps, 0.0)  # (B, T)
    advantages = config.kl_coef * tensors.returns_to_go(gap, mask, config.kl_discount)
    above = rewards - tensors.group_mean(rewards, rollouts.group)  # (B,)
    task = config.task_weight * above.nan_to_num(0.0)[:, None]  # a completion without a reward: the teacher's word only
    return torch.where(mask, advantages + task, 0.0)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Importance-weighted policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    if config.epsilon is None:
        loss = -ratio * advantages
    else:
        loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
    metrics = {
        "reverse_kl": view.logps.detach() - batch.teacher_logps,
        "ratio": ratio.detach(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
