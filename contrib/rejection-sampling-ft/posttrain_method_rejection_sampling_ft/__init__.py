"""Rejection-sampled fine-tuning: of several scored answers to a prompt, learn the best.

Papers: Yuan et al. 2023, "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models",
arXiv:2308.01825 (RFT); Dong et al. 2023, arXiv:2304.06767 (RAFT, the best of each prompt); Zelikman et al. 2022,
arXiv:2203.14465 (STaR).

Loss: the negative log-likelihood of the ``k`` best answers to each prompt, averaged over their tokens. Equal answers
count once, equal scores in the order of the data. ``min_score`` leaves out answers below it, for example wrong ones.

Differs from the paper: RFT tells reasoning paths apart by their equations; here texts are compared as they are.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- kept_score: mean score of the answers that are learnt.
"""

import json
from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of rejection-sampled fine-tuning."""

    k: int = 1
    """Answers that are kept of each prompt."""
    min_score: float | None = None
    """Smallest score that an answer may have [any]."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, expected at least one answer of each prompt.")


@hookimpl
def posttrain_rows(rows, config):
    """The best rows of each prompt, in the order of the data."""
    groups = {}
    for row in rows:
        fine = config.min_score is None or row["score"] >= config.min_score
        answers = groups.setdefault(json.dumps(row["prompt"], sort_keys=True), {})
        if fine:
            answers.setdefault(json.dumps(row["completion"], sort_keys=True), row)
    best = [sorted(one.values(), key=lambda row: -row["score"])[: config.k] for one in groups.values()]
    return sorted((row for several in best for row in several), key=lambda row: row["row"])


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood."""
    view = policy.completion
    return PerToken(-view.logps, view.mask), {
        "nll": PerToken(-view.logps.detach(), view.mask),
        "kept_score": batch.score,
    }
