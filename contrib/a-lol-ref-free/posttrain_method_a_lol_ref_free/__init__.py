"""A-LoL without a reference: weighted behaviour cloning by positive advantages.

Paper: Baheti et al. 2023, "Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models",
arXiv:2305.14718, section 2.3 (A-LoL ref. free; with the reward itself in place of the advantage R-LoL).

Loss: -A log p of the whole answer, with A = max(0, score - value), where ``value`` is what the reference policy is
expected to score at the prompt. This is ``a-lol`` with every importance ratio 1.

Differs from the paper: a row may bring its ``advantage``, or ``value``; otherwise the value is the mean of
``group_scores``, or else of all scores (the paper trains a head on the reference's own answers). Rows without
advantage have weight 0 and are not left out.

Metrics:
- advantage: mean A. Set by the data alone.
- nll: mean negative log-probability of a token. Falls for answers with an advantage.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """A-LoL without a reference has no options of its own."""


@hookimpl
def posttrain_rows(rows):
    """Give each row the advantage of its answer, unless it brings one."""
    overall = sum(row["score"] for row in rows) / max(len(rows), 1)
    groups = [row.get("group_scores") or [overall] for row in rows]
    values = [row.get("value", sum(group) / len(group)) for row, group in zip(rows, groups, strict=True)]
    return [{"advantage": max(0.0, row["score"] - value), **row} for row, value in zip(rows, values, strict=True)]


@hookimpl
def posttrain_loss(batch, policy):
    """Advantage times likelihood, one value an answer."""
    view = policy.completion
    advantage = batch.advantage if "advantage" in batch else batch.score.clamp(min=0)  # (B,)
    advantage = advantage.to(view.logps)
    return -advantage * view.sum, {"advantage": advantage, "nll": PerToken(-view.logps.detach(), view.mask)}
