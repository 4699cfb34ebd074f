"""DistiLLM-2: the teacher's answers and the student's are not told the same; each gets the divergence that suits it.

Paper: Ko et al. 2025, "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", arXiv:2503.07067, section
3.

Loss in words: each prompt is answered by the teacher and by the student. On the teacher's answers, which should become
likelier, the student is drawn to the teacher p by SKL; on its own, which should become less likely where the teacher
disagrees, by SRKL:

    SKL  = KL(p || alpha_1 p + (1 - alpha_1) s)          SRKL = KL(s || (1 - alpha_2) p + alpha_2 s)
    loss = (2 - beta) * SKL(teacher's answer) + beta * SRKL(student's answer)

Each is the mean over an answer's tokens; the mean is over prompts. Within SRKL the student's part of the mixture has
no gradient.

Differs from the paper: the alphas are constant; the paper sets them by how far the models are apart on each answer,
and raises beta to 1.5 in the course of training. The student's answers are the current one's, not those of the start.
The teacher has to be a local model.

Metrics:
- skl: on the teacher's answers, in nats. Falls.
- srkl: on the student's answers, in nats. Falls.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    alpha_1: float = 0.1
    """Share of the teacher in the mixture of SKL (the paper's start)."""
    alpha_2: float = 0.1
    """Share of the student in the mixture of SRKL (the paper's start)."""
    beta: float = 1.0
    """Weight of the student's answers, from 0 to 2 (the paper: from 1 to 1.5)."""

    def __post_init__(self) -> None:
        for name in ("alpha_1", "alpha_2"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number between 0 and 1")
        if not 0 <= self.beta <= 2:
            raise ValueError(f"beta is {self.beta}, expected a number from 0 to 2")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """The student's answers, and as many of the teacher's."""
    return [[SampleRequest(group_size), SampleRequest(group_size, source="teacher")] for _ in prompts]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """Both skewed divergences of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    near_teacher = torch.logaddexp(teacher + math.log(config.alpha_1), student + math.log(1 - config.alpha_1))
    held = student.detach() + math.log(config.alpha_2)
    near_student = torch.logaddexp(held, teacher + math.log(1 - config.alpha_2))
    return {"skl": tensors.kl_divergence(teacher, near_teacher), "srkl": tensors.kl_divergence(student, near_student)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Twice the mean over answers is the mean over prompts of both."""
    view = policy.completion
    theirs = torch.tensor([who == "teacher" for who in batch.source], device=view.logps.device)  # (B,)
    skl, srkl = view.mean_of(view.skl), view.mean_of(view.srkl)
    loss = 2 * torch.where(theirs, (2 - config.beta) * skl, config.beta * srkl)
    unknown = torch.full_like(loss, torch.nan)
    return loss, {
        "skl": torch.where(theirs, skl.detach(), unknown),
        "srkl": torch.where(theirs, unknown, srkl.detach()),
    }
