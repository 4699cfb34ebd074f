"""KDRL: group-relative policy gradient on verified rewards, joined with on-policy distillation from a teacher.

Paper: Xu et al. 2025, "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement
Learning", arXiv:2506.02208, section 3; AReaL's implementation.

Loss in words: rewards say whether an answer is right, a teacher says at each of its tokens what it would have done. An
answer's advantage is its reward less its group's mean in standard deviations, and has the clipped policy gradient.
Added is an estimate of the divergence KL(student || teacher), from the sampled tokens' log-probabilities l and q
alone:

    loss = rl_coef * (-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)) + kd_coef * estimate(l, q)
    k2: (l - q)^2 / 2      k1: l - q      reward: -exp(l - o) * (q - l), q - l held constant

averaged over all tokens of the step. The gradient of k2, on samples of the student, is that of the divergence; that of
"reward" too; that of k1 is 0 on average and only its value is the divergence.

Differs from the paper: kd_coef is constant, the paper lowers it in the course of training; its masking of the teacher
on right answers is left out.

Metrics:
- reverse_kl: log-probability of a token under the student less that under the teacher, in nats. Falls towards 0.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- entropy: of the student's next-token distribution in nats. Below 0.01 it has collapsed.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 leaves only the teacher.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    kd_coef: float = 0.005
    """Weight of the teacher (AReaL)."""
    rl_coef: float = 1.0
    """Weight of the rewards (AReaL)."""
    estimator: Literal["k2", "k1", "reward"] = "k2"
    """How the divergence is estimated: k2 as in the paper, k1 as in AReaL, or as a reward of each token."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    rollouts.teacher_logps  # noqa: B018  (read now, so that the loss finds them in its batch)
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient, and the teacher's pull on each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)

    gap = view.logps - batch.teacher_logps  # (B, T)
    pull = {"k1": gap, "k2": 0.5 * gap.square(), "reward": ratio * gap.detach()}[config.estimator]
    metrics = {"reverse_kl": gap.detach(), "ratio": ratio.detach()}
    terms = {"policy": config.rl_coef * loss, "distillation": config.kd_coef * pull}
    terms, metrics = ({name: PerToken(v, view.mask) for name, v in one.items()} for one in (terms, metrics))
    return terms, metrics | {"advantage_size": batch.advantages.abs()}
