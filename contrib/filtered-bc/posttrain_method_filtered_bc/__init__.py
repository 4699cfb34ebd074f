"""Filtered behaviour cloning: imitate the rows whose score is among the highest.

Papers: Chen et al. 2021, "Decision Transformer", arXiv:2106.01345, section 5.1 (the baseline %BC); Gulcehre et al.
2023, arXiv:2308.08998 (ReST).

Loss: the negative log-likelihood of the rows whose score reaches the q-quantile of all scores, averaged over their
tokens.

Differs from the paper: nothing. ReST raises the threshold from round to round; that is a run with a larger q each.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- kept_score: mean score of the rows that are learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of filtered behaviour cloning."""

    q: float = 0.7
    """Share of the rows that is left out, 0 to below 1 (trlx raises it from 0.7 to 0.95)."""

    def __post_init__(self) -> None:
        if not 0 <= self.q < 1:
            raise ValueError(f"q is {self.q}, expected a share from 0 to below 1.")


@hookimpl
def posttrain_rows(rows, config):
    """The rows that reach the threshold."""
    scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
    ranked = scores.sort().values
    place = config.q * (len(ranked) - 1)  # torch.quantile takes no more than 16 million
    low, high = ranked[int(place)], ranked[min(int(place) + 1, len(ranked) - 1)]
    threshold = low + (high - low) * (place - int(place))
    return [row for row, score in zip(rows, scores.tolist(), strict=True) if score >= threshold]


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood."""
    view = policy.completion
    return PerToken(-view.logps, view.mask), {
        "nll": PerToken(-view.logps.detach(), view.mask),
        "kept_score": batch.score,
    }
