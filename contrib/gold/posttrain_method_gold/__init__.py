"""General Online Logit Distillation: the student answers, a teacher with any tokeniser shows what it would have said.

Source: Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family" (Hugging Face). It builds on
universal logit distillation, Boizard et al. 2024, arXiv:2402.12030, and on GKD, Agarwal et al. 2024, arXiv:2306.13649.

Loss in words: the answer is cut into spans, the shortest runs of text at whose ends both tokenisers cut. A span of
several tokens has the distribution at its first token times the probabilities of the tokens that follow ("observed"),
or that at its last token times the probabilities of those before it ("bayesian"): for the text as it stands this is
the probability of the whole span. Tokens that both vocabularies have are compared one by one, the others by rank:

    matched   = JSD_beta(teacher, student) over the shared tokens
    unmatched = sum |sorted teacher - sorted student| over the rest, the shorter side filled up with 0
    loss      = mean over answers of the mean over spans of  matched_weight * matched + unmatched_weight * unmatched

JSD_beta = beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student; 0 is
KL(teacher || student) and 1 is KL(student || teacher). Probabilities are not made to sum to 1 again, and none counts
as smaller than 1e-8.

Differs from TRL: "observed" takes the distributions that predict the span's own tokens, as "bayesian" does; TRL takes
those one place later. Any tokenisers are aligned, by what tokens write, not only byte-level BPE by their names. A span
that only one side has teaches nothing. Where the shared tokens are a whole vocabulary, what the other one has beyond
counts as unmatched; TRL leaves it out.

Metrics:
- distance: the loss of a span. Falls; what remains is what the student cannot express.
- spans_per_token: spans that teach something per token of the student. 1 with the same tokeniser, 0.6 to 0.9 with
  another of the same language; far below, the texts do not align.
- entropy: of the student's next-token distribution in nats. Falls slowly; below 0.01 it has stopped exploring.
- on_policy: share of answers that the student wrote.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from posttrain import PerToken, SampleRequest, hookimpl, tensors
from torch import Tensor

_FLOOR = math.log(1e-8)


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.5
    """Between KL(teacher || student) at 0 and KL(student || teacher) at 1 (TRL)."""
    merge: Literal["observed", "bayesian"] = "observed"
    """Which distribution a span of several tokens has: that of its first token, or that of its last (TRL)."""
    matched_weight: float | None = None
    """Weight of the shared tokens; None is the share of the teacher's vocabulary that is shared (TRL)."""
    unmatched_weight: float | None = None
    """Weight of the other tokens; None is 1 - matched_weight (TRL)."""
    on_policy_share: float = 0.5
    """Share of prompts that the student answers; the data answer the others (lambda in GKD; TRL)."""
    skip_end_of_sequence: bool = True
    """Learn nothing about where to stop: the two ends may mean different things (TRL)."""
    shared_ids: list[int] | None = None
    """With a teacher of the same tokeniser: the ids that count as shared; None is all."""

    def __post_init__(self) -> None:
        for name in ("beta", "on_policy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1.")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config, random):
    """All prompts of a step are answered by the student, or all by the data (as in GKD)."""
    own = random.random() < config.on_policy_share
    return [
        [SampleRequest(group_size) if own or not prompt.get("completion") else SampleRequest(1, source="data")]
        for prompt in prompts
    ]


@hookimpl
def posttrain_token_statistics(logits, labels, teacher_logits, alignment, config):
    """The loss of each span at its first token, and where a span that teaches something begins."""
    spans = teacher_spans = numbers = torch.arange(len(labels), device=labels.device)
    teacher_labels, counts = labels, torch.ones_like(labels, dtype=torch.bool)
    matched = (torch.arange(logits.shape[1]) if config.shared_ids is None else torch.tensor(config.shared_ids),) * 2
    if alignment is not None:
        spans, teacher_spans = alignment.student_spans, alignment.teacher_spans
        teacher_labels, matched = alignment.teacher_labels, alignment.matched
        counts = numbers.new_zeros(len(alignment.text), dtype=torch.bool).index_fill(0, teacher_spans, True)
        if config.skip_end_of_sequence:
            counts = counts & alignment.text
    losses = span_losses(logits, labels, spans, teacher_logits, teacher_labels, teacher_spans, matched, config)  # (S,)
    first = F.pad(spans[1:] != spans[:-1], (1, 0), value=True) & counts[spans]  # (n,)
    distance = torch.where(first, F.pad(losses, (0, len(counts) - len(losses)))[spans], 0.0)
    return {"distance": distance, "span": first.to(logits.dtype)}


@hookimpl
def posttrain_loss(batch, policy):
    """Mean over the spans of an answer."""
    view = policy.completion
    loss = view.sum_of(view.distance) / view.sum_of(view.span).clamp(min=1)  # (B,)
    return loss, {
        "distance": loss.detach(),
        "spans_per_token": PerToken(view.span, view.mask),
        "on_policy": (~view.sum_of(batch.sampled_logps).isnan()).to(loss.dtype)
        if "sampled_logps" in batch
        else loss * 0,
    }


def span_losses(
    student_logits: Tensor,
    student_labels: Tensor,
    student_spans: Tensor,
    teacher_logits: Tensor,
    teacher_labels: Tensor,
    teacher_spans: Tensor,
    matched: tuple[Tensor, Tensor],
    config: Config,
) -> Tensor:
    """The loss of each span, ``(S,)``; 0 for a span without tokens on one side, with gradient through all its tokens.

    Logits ``(n, V)`` and ``(m, W)`` are those that predict the labels ``(n,)`` and ``(m,)``; ``student_spans`` and
    ``teacher_spans`` number the spans from 0; ``matched`` are the ids ``(k,)`` of shared tokens on both sides.
    """
    count = 1 + max((int(spans.max()) for spans in (student_spans, teacher_spans) if len(spans)), default=-1)
    present = [spans.bincount(minlength=count) > 0 for spans in (student_spans, teacher_spans)]
    both = (present[0] & present[1]).nonzero()[:, 0]  # (P,)
    at_first = config.merge == "observed"
    student = tensors.span_logps(student_logits, student_labels, student_spans, at_first, count)[both]  # (P, V)
    with torch.no_grad():
        teacher = tensors.span_logps(teacher_logits, teacher_labels, teacher_spans, at_first, count)[both].to(student)
    student_ids, teacher_ids = (ids.to(student.device) for ids in matched)  # (k,)
    shared = student[:, student_ids].clamp(min=_FLOOR), teacher[:, teacher_ids].clamp(min=_FLOOR)  # (P, k)
    close = tensors.generalised_jsd(*shared, config.beta)  # (P,)
    apart = tensors.rank_distance(_without(student, student_ids).exp(), _without(teacher, teacher_ids).exp())  # (P,)
    weight = len(teacher_ids) / teacher.shape[1] if config.matched_weight is None else config.matched_weight
    other = 1 - weight if config.unmatched_weight is None else config.unmatched_weight
    return student.new_zeros(count).index_add(0, both, weight * close + other * apart)


def _without(values: Tensor, ids: Tensor) -> Tensor:
    """The columns that are not in ``ids``: ``(P, V)`` to ``(P, V - k)``."""
    keep = torch.ones(values.shape[1], dtype=torch.bool, device=values.device)
    keep[ids] = False
    return values[:, keep]
