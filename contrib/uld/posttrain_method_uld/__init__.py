"""Universal logit distillation: teacher and student need no common vocabulary, only their sorted probabilities compare.

Paper: Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
arXiv:2402.12030, equations 4 and 5.

Loss in words: at each token both models' probabilities are sorted; the sum of the distances between the largest, the
second largest and so on is the Wasserstein distance where every two words are equally far apart. It says how sure the
teacher is, not of what; the latter comes from the answer itself:

    loss = ce_weight * -log s(token) + uld_weight * sum |sorted s - sorted p|

averaged over an answer's tokens, then over answers; the smaller vocabulary is filled up with 0.

Differs from the paper: with another tokeniser the k-th token of a span of text that both cut at its ends is compared
with the teacher's k-th token there; the paper counts from the beginning of the answer, and drifts apart. Tokens
without a partner have the first term only. Answers are the data's; with on_policy_share also the student's (as in
TRL).

Metrics:
- distance: of a token, from 0 to 2. Falls.
- nll: negative log-probability of a token in nats. Falls.
- compared: share of tokens that have a partner. 1 with the same tokeniser.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, SampleRequest, hookimpl, tensors
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Options."""

    ce_weight: float = 1.0
    """Weight of the answer's own tokens (the paper)."""
    uld_weight: float = 1.5
    """Weight of the distance (the paper)."""
    on_policy_share: float = 0.0
    """Share of steps whose answers the student gives; give it ce_weight 0 then. 0: the data's alone (the paper)."""
    aggregation: Literal["sequence", "token"] = "sequence"
    """Average over an answer's tokens, then over answers (the paper, TRL), or over all tokens of the step (DSKD)."""

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy_share <= 1:
            raise ValueError(f"on_policy_share is {self.on_policy_share}, expected a number from 0 to 1")

    @property
    def learns_from_data(self) -> bool:
        """Whether any answers are the data's."""
        return self.on_policy_share < 1


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, random):
    """One draw for the whole step decides who answers."""
    plan = [SampleRequest(group_size)] if random.random() < config.on_policy_share else [SampleRequest(source="data")]
    return [plan for _ in prompts]


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, alignment):
    """The distance of each token from its partner's."""
    student, teacher = logits.softmax(-1), teacher_logits.softmax(-1)  # (n, V), (m, W)
    partner = torch.arange(len(student), device=student.device)  # (n,)
    compared = torch.ones_like(partner, dtype=torch.bool)
    if alignment is not None:
        partner, compared = _partners(alignment.student_spans, alignment.teacher_spans)
    distance = student.new_zeros(len(student))
    distance = distance.index_put(
        (compared.nonzero()[:, 0],), tensors.rank_distance(student[compared], teacher[partner[compared]])
    )
    return {"distance": distance, "compared": compared.to(student.dtype)}


@hookimpl
def posttrain_loss(policy, config):
    """Cross entropy and distance."""
    view = policy.completion
    loss = config.uld_weight * view.distance - config.ce_weight * view.logps  # (B, T)
    metrics = {"distance": view.distance.detach(), "nll": -view.logps.detach(), "compared": view.compared}
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return (PerToken(loss, view.mask) if config.aggregation == "token" else view.mean_of(loss)), metrics


def _partners(spans: Tensor, teacher_spans: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the n tokens, which of the m stands at the same place of the same span, and whether one does."""
    width = 1 + max(len(spans), len(teacher_spans))
    mine, theirs = (
        one * width + torch.arange(len(one), device=one.device) - _first(one) for one in (spans, teacher_spans)
    )
    if not len(theirs):
        return torch.zeros_like(mine), torch.zeros_like(mine, dtype=torch.bool)
    place = torch.searchsorted(theirs, mine).clamp(max=len(theirs) - 1)  # (n,): both are in order
    return place, theirs[place] == mine


def _first(spans: Tensor) -> Tensor:
    """Where the span of each token begins, ``(n,)``; spans are in order."""
    return torch.searchsorted(spans, spans)
