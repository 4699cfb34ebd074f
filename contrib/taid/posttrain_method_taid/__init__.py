"""Temporally adaptive interpolated distillation: the target starts near the student and ends at the teacher.

Paper: Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
Language Models", arXiv:2501.16937, equations 3 to 7.

Loss in words: a student far below its teacher averages over what it cannot tell apart. So it is taught by a
distribution between the two, whose logits are interpolated, the student's without gradient; the loss is the cross
entropy with it, averaged over all tokens of an answer of the data:

    target = softmax((1 - t) * student logits + t * teacher logits),   loss = -sum target log s

t rises from t_start to t_end, at least by a line over the run, and faster while the loss falls; after each step

    m = momentum * m + (1 - momentum) * (previous loss - loss) / previous loss
    t = max(line, t + rate * sigmoid(m) * (1 - t)),   at most t_end

Differs from the paper: nothing; the loss is the cross entropy, as in the authors' code, whose gradient is that of the
divergence.

Metrics:
- interpolation: t. From t_start to t_end.
- divergence: KL(teacher || student) of a token in nats. Falls, slowly while t is small.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    t_start: float = 0.4
    """Share of the teacher in the target at the beginning (the paper)."""
    t_end: float = 1.0
    """The same at the end (the paper)."""
    rate: float = 5e-4
    """Largest step of t, beyond the line (alpha; the paper)."""
    momentum: float = 0.99
    """Of the relative change of the loss (beta; the paper)."""

    def __post_init__(self) -> None:
        if not 0 <= self.t_start <= self.t_end <= 1:
            raise ValueError(f"t_start is {self.t_start} and t_end {self.t_end}, expected two shares in that order")


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config, state):
    """Cross entropy with the target of this step."""
    t = state.get("t", config.t_start)
    target = ((1 - t) * logits.detach() + t * teacher_logits).softmax(-1)  # (n, V)
    student = logits.log_softmax(-1)
    return {
        "cross_entropy": -(target * student).sum(-1),
        "divergence": tensors.kl_divergence(teacher_logits.log_softmax(-1), student.detach()),
        "interpolation": torch.full_like(student[:, 0], t).detach(),
        "entropy": tensors.token_entropy(logits),
    }


@hookimpl
def posttrain_loss(policy):
    """The cross entropy, averaged over the tokens of the step."""
    view = policy.completion
    names = ("interpolation", "divergence", "entropy")
    return PerToken(view.cross_entropy, view.mask), {name: PerToken(getattr(view, name), view.mask) for name in names}


@hookimpl
def posttrain_after_step(step, metrics, config, state):
    """Move t by the line, or by how fast the loss fell."""
    before, now = state.get("loss"), float(metrics["loss"])
    state["loss"] = now
    if before is None:
        return
    fallen = (before - now) / (before + 1e-15)
    state["m"] = config.momentum * state.get("m", 0.0) + (1 - config.momentum) * fallen
    t = state.get("t", config.t_start)
    line = config.t_start + (config.t_end - config.t_start) * (step.number + 1) / step.total
    state["t"] = min(config.t_end, max(line, t + config.rate / (1 + math.exp(-state["m"])) * (1 - t)))
