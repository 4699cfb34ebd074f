"""MiniLLM: distil whole answers, by a policy gradient on the divergence of the student from the teacher.

Paper: Gu et al. 2023, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv:2306.08543, section 2.2.

Loss in words: answers are drawn token by token from a mixture of student and teacher, so that the student cannot
exploit what the teacher says of degenerate text. A token's reward is r = log q - log s, what the teacher's probability
q of it lies above the student's s. It answers for the mean reward of the tokens that follow it, so that short answers
are no gain, and has the clipped policy gradient of that; its own expected reward needs no sampling and is minus the
divergence of the two distributions (single-step decomposition). Both are weighted by w, the token's probability under
the student relative to whoever drew it, and averaged over all tokens of the step:

    R_t = gamma * (sum over k > t of gamma^(k - t - 1) r_k) / (sum over k > t of gamma^(k - t - 1))
    loss = -min(w R_t, clip(w, 1 - epsilon, 1 + epsilon) R_t)  +  w KL(s || q)

Without the decomposition the sums begin at the token itself, and nothing is added. Where there are rewards, each
answer's advantage within its group, times task_weight, is added to R_t.

Differs from the paper: its third term, language modelling on pre-training text, is left out. In later updates of the
same answers the rewards are those of the student as it is then. TRL counts a token's own reward twice, in R_t and in
the divergence, draws from the student alone, and lets a gradient through the rewards.

Metrics:
- reverse_kl: log s - log q of the tokens that were drawn, which estimates KL(student || teacher) in nats. Falls
  towards 0; below 0 while the teacher's share of the mixture is large.
- advantage: what a token is worth. Negative at first, rises towards 0.
- ratio: the weight w. Mean about 1; with a mixture never above 1 / (1 - teacher_share) in the first update.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    teacher_share: float = 0.2
    """Share of the teacher in the mixture that answers are drawn from (alpha, paper section 3.1). Above 0 the teacher
    must be a local model; 0 draws from the student alone."""
    gamma: float = 1.0
    """Discount of the rewards of later tokens, from 0 to 1 (the paper has none; the authors' scripts: 0.95, TRL: 0)."""
    length_normalization: bool = True
    """Divide the sum of later rewards by their number (paper, section 2.2)."""
    single_step_decomposition: bool = True
    """Take a token's own expected reward from the whole distributions (paper, section 2.2)."""
    rkl_advantage: bool = True
    """Learn from the teacher's rewards by policy gradient; else only from the divergence and the task's rewards."""
    epsilon: float = 0.2
    """How far the weight may leave 1 before it is clipped (paper, appendix)."""
    aggregation: Literal["token", "sequence"] = "token"
    """Average the policy gradient over all tokens of the step (the authors' scripts), or over an answer's, then
    answers."""
    task_weight: float = 1.0
    """Weight of the rewards, where there are any (TRL)."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviation of the rewards of a group (TRL)."""

    def __post_init__(self) -> None:
        for name in ("gamma", "teacher_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config):
    """Answers from the mixture."""
    plan = [SampleRequest(group_size, source="teacher", mixture=config.teacher_share, mean="arithmetic")]
    return [plan if config.teacher_share else [SampleRequest(group_size)] for _ in prompts]


@hookimpl
def posttrain_token_statistics(logits, labels, teacher_logits):
    """The whole divergence, the teacher's log-prob of the token, and the entropy for the log."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    return {
        "divergence": tensors.kl_divergence(student, teacher),
        "teacher_logps": teacher.gather(1, labels[:, None])[:, 0],
    }


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,); 0 where there are no rewards."""
    above = config.task_weight * (rewards - tensors.group_mean(rewards, rollouts.group))
    return (above / (tensors.group_std(rewards, rollouts.group) + config.advantage_epsilon)).nan_to_num(0.0)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient and single-step divergence."""
    view = policy.completion
    rewards = view.teacher_logps - view.logps.detach()  # (B, T)
    advantages = batch.advantages.reshape(len(rewards), -1).expand_as(rewards)  # (B, T)
    if config.rkl_advantage:
        advantages = advantages + _worth(rewards, view.mask, config)
    drawn_by = batch.sampled_logps if config.teacher_share else batch.old_logps  # (B, T)
    ratio = tensors.importance_ratio(view.logps - drawn_by)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    terms = {"policy": view.mean_of(loss) if config.aggregation == "sequence" else PerToken(loss, view.mask)}
    if config.single_step_decomposition:
        terms["single_step"] = PerToken(ratio.detach() * view.divergence, view.mask)
    metrics = {"reverse_kl": -rewards, "advantage": advantages, "ratio": ratio.detach()}
    return terms, {name: PerToken(values, view.mask) for name, values in metrics.items()}


def _worth(rewards, mask, config):
    """Sum, or mean, of the rewards (B, T) that each token answers for."""
    found = tensors.returns_to_go(rewards, mask, config.gamma)
    if config.length_normalization:
        found = found / tensors.returns_to_go(mask.to(rewards.dtype), mask, config.gamma).clamp(min=1)
    if config.single_step_decomposition:  # its own reward is in the divergence
        found = config.gamma * F.pad(found[:, 1:], (0, 1))
    return found
