"""Knowledge distillation: the answers of the data, and at each token the whole distribution of a teacher.

Paper: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.

Loss in words: for every token of an answer of the data, the student is told the token itself and what the teacher
would have expected there. The two distributions, p of the teacher and s of the student, are both softened by a
temperature T; the divergence is multiplied by T squared, so that its gradient keeps its size:

    loss = (1 - kd_rate) * (-log s(token)) + kd_rate * T^2 * KL(p_T || s_T),   averaged over all tokens of the step

Differs from the paper: the paper writes a cross entropy with the soft targets; the divergence is less by the teacher's
entropy, which has no gradient.

Metrics:
- nll: negative log-probability of the data's tokens in nats. Falls.
- divergence: KL(teacher || student) of a token at temperature T, in nats, without T^2. Falls towards 0.
- agreement: share of tokens where both models have the same likeliest token. Rises.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    kd_rate: float = 0.5
    """Share of the teacher in the loss, the rest is the data's (DSKD's scripts: 0.5)."""
    softness: float = 2.0
    """Temperature T that divides the logits of both models in the divergence (the paper, section 3: 2.5 to 4 for small
    students, higher for large ones)."""

    def __post_init__(self) -> None:
        if not 0 <= self.kd_rate <= 1:
            raise ValueError(f"kd_rate is {self.kd_rate}, expected a number from 0 to 1")
        if self.softness <= 0:
            raise ValueError(f"softness is {self.softness}, expected a temperature above 0")


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of the softened distributions, and whether the likeliest tokens agree."""
    soft = [(one / config.softness).log_softmax(-1) for one in (teacher_logits, logits)]  # (n, V) each
    same = logits.argmax(-1) == teacher_logits.argmax(-1)
    return {"divergence": tensors.kl_divergence(*soft), "agreement": same.to(logits.dtype)}


@hookimpl
def posttrain_loss(policy, config):
    """Cross entropy with the data and divergence from the teacher, averaged over the tokens of the step."""
    view = policy.completion
    soft = config.kd_rate * config.softness**2 * view.divergence  # (B, T)
    terms = {"ce": (config.kd_rate - 1) * view.logps, "kd": soft}
    metrics = {"nll": -view.logps.detach(), "divergence": view.divergence.detach(), "agreement": view.agreement}
    return tuple({name: PerToken(values, view.mask) for name, values in one.items()} for one in (terms, metrics))
