"""f-DISTILL: sequence-level divergences, taken token by token on answers of the teacher and of the student.

Paper: Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv:2307.15190,
section 3.

Loss in words: a divergence of whole answers is bounded by the sum of the tokens' own, along answers that are sampled
from one of the two models: a symmetric divergence needs both. So each prompt is answered by the student with
probability student_share, otherwise by the teacher. With the teacher's distribution p, the student's s and m = (p + s)
/ 2:

    total_variation: 1/2 sum |p - s|        js: 1/2 KL(p || m) + 1/2 KL(s || m)
    forward_kl:      KL(p || s)             reverse_kl: KL(s || p)

averaged over all tokens of the step. Nothing is learnt about which answers get sampled.

Differs from the paper: answers are sampled while the student trains, the teacher's too, which has to be a local model
(or student_share 1). Each divergence is taken on the answers of both; the paper has the student's half of js on the
student's and the other on the teacher's.

Metrics:
- divergence: of a token. Falls towards 0; total variation lies between 0 and 1.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's; below 0.01 it has collapsed.
- on_policy: share of answers that the student gave.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    divergence: Literal["total_variation", "js", "forward_kl", "reverse_kl"] = "total_variation"
    """How the two distributions are compared (the paper finds total variation and js the best)."""
    student_share: float = 0.5
    """Share of prompts that the student answers (the paper: half for the symmetric ones, 0 for forward_kl, 1 for
    reverse_kl)."""

    def __post_init__(self) -> None:
        if not 0 <= self.student_share <= 1:
            raise ValueError(f"student_share is {self.student_share}, expected a number from 0 to 1")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, random):
    """Student or teacher, drawn for each prompt."""
    own, theirs = [SampleRequest(group_size)], [SampleRequest(group_size, source="teacher")]
    return [own if random.random() < config.student_share else theirs for _ in prompts]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    if config.divergence == "total_variation":
        divergence = 0.5 * (teacher.exp() - student.exp()).abs().sum(-1)
    else:
        beta = {"js": 0.5, "forward_kl": 0.0, "reverse_kl": 1.0}[config.divergence]
        divergence = tensors.generalised_jsd(student, teacher, beta)
    return {"divergence": divergence}


@hookimpl
def posttrain_loss(batch, policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    mine = view.logps.new_tensor([who == "policy" for who in batch.source])  # (B,)
    metrics = {name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "entropy")}
    return PerToken(view.divergence, view.mask), metrics | {"on_policy": mine}
