"""Critic-regularised regression: behaviour cloning filtered, or weighted, by an advantage.

Paper: Wang et al. 2020, "Critic Regularized Regression", arXiv:2006.15134, equations 3 and 4.

Loss: -f(A) (mean over tokens of log p), with the advantage A = score - value of an answer and

    binary: f = 1 where A > 0, else 0        exp: f = min(exp(A / beta), 20)

Differs from the paper: an answer is one action with its score as return, so no critic is trained: ``value`` is a
column, or the mean of ``group_scores``, or else of all scores. The mean over tokens keeps long answers from weighing
more.

Metrics:
- advantage: mean A. Set by the data alone.
- importance: mean f: with "binary" the share of answers that are learnt.
- nll: mean negative log-probability of a token. Falls for answers that are learnt.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl

LARGEST = 20.0


@dataclass(frozen=True)
class Config:
    """Options of critic-regularised regression."""

    variant: Literal["binary", "exp"] = "binary"
    """Leave out answers without advantage, or weigh all by it."""
    beta: float = 1.0
    """Temperature of "exp", in units of the score."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a temperature above 0.")


@hookimpl
def posttrain_rows(rows):
    """Give each row the expected score of its prompt, unless it brings one."""
    overall = sum(row["score"] for row in rows) / max(len(rows), 1)
    groups = [row.get("group_scores") or [overall] for row in rows]
    return [{"value": sum(group) / len(group), **row} for row, group in zip(rows, groups, strict=True)]


@hookimpl
def posttrain_loss(batch, policy, config):
    """Filtered or weighted likelihood, one value an answer."""
    view = policy.completion
    advantage = (batch.score - batch.get("value", 0.0)).to(view.logps)  # (B,)
    weight = (advantage > 0).to(view.logps)
    if config.variant == "exp":
        weight = (advantage / config.beta).exp().clamp(max=LARGEST)
    return -weight * view.mean, {
        "advantage": advantage,
        "importance": weight,
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
