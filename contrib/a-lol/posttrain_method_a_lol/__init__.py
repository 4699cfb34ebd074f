"""A-LoL: advantage-leftover-lunch reinforcement learning, offline and on positive advantages alone.

Paper: Baheti et al. 2023, "Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models",
arXiv:2305.14718, equation 4.

Loss: an answer of T tokens is one action with the advantage A = max(0, score - value), where ``value`` is what the
reference policy is expected to score at the prompt. With the ratio k held fixed and clipped to 1 - clip .. 1 + clip:

    -A sum_t k_t log p_t,    k = p / p_reference of the whole answer (A-LoL), or of each token (A-LoL seq.)

Differs from the paper: ``value`` is a column; where it is missing it is the mean of ``group_scores``, or else of all
scores (the paper trains a head on the reference's own answers). Rows without advantage have weight 0 and are not
left out; rows are drawn evenly, not by their advantage.

Metrics:
- advantage: mean A. Set by the data alone.
- ratio: mean k, held within its bounds. Starts at 1.
- nll: mean negative log-probability of a token. Falls for answers with an advantage.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of A-LoL."""

    ratio: Literal["sequence", "token"] = "sequence"
    """Importance ratio of the whole answer, or of each token (A-LoL seq. in the authors' code)."""
    clip: float = 0.9
    """How far the ratio may be from 1."""


@hookimpl
def posttrain_rows(rows):
    """Give each row the expected score of its prompt, unless it brings one."""
    overall = sum(row["score"] for row in rows) / max(len(rows), 1)
    groups = [row.get("group_scores") or [overall] for row in rows]
    return [{"value": sum(group) / len(group), **row} for row, group in zip(rows, groups, strict=True)]


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Advantage times weighted likelihood, one value an answer."""
    view = policy.completion
    advantage = (batch.score - batch.get("value", 0.0)).clamp(min=0).to(view.logps)  # (B,)
    log_ratio = view.logps.detach() - reference.completion.logps  # (B, T)
    if config.ratio == "sequence":
        log_ratio = view.sum_of(log_ratio)[:, None].expand_as(log_ratio)
    ratio = tensors.importance_ratio(log_ratio).clamp(1 - config.clip, 1 + config.clip)
    loss = -advantage * view.sum_of(ratio * view.logps)
    return loss, {
        "advantage": advantage,
        "ratio": PerToken(ratio, view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
