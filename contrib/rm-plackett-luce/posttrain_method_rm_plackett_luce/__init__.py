"""Plackett-Luce reward model: the likelihood of a whole ranking.

Paper: Zhu et al. 2023, "Principled Reinforcement Learning with Human Feedback from Pairwise or K-wise Comparisons",
arXiv:2301.11270, section 4 (maximum likelihood for K-wise comparisons).

Loss: answers are chosen one after the other, each among those that are left, with probability proportional to the
exponential of its score r. For the ranking r_1, .., r_K of a prompt, best first:

    -sum_(k < K) (r_k - log sum_(j >= k) exp(r_j))

With K = 2 this is Bradley-Terry, the method ``reward``.

Differs from the paper: nothing; ``per_choice`` divides by K - 1, so that long rankings do not weigh more.

Metrics:
- accuracy: share of a prompt's pairs of answers scored in the right order. Rises from 0.5.
- best_first: share of prompts whose best answer has the highest score.
- range: score of the best answer less that of the worst. Rises.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of the Plackett-Luce reward model."""

    per_choice: bool = False
    """Divide a ranking's loss by the number of its choices."""


@hookimpl
def posttrain_loss(policy, config):
    """Negative log-likelihood of each prompt's ranking."""
    view, present = policy.completion, policy.completion.present  # (B, K)
    scores = view.listed(view.score)
    left = torch.where(present, scores, torch.full_like(scores, -1e4)).flip(1).logcumsumexp(1).flip(1)
    choices = (view.counts - 1).to(scores.dtype)  # (B,)
    loss = torch.where(present, left - scores, 0.0).sum(1)  # the last one's term is 0
    if config.per_choice:
        loss = loss / choices.clamp(min=1)
    seen = scores.detach()
    pairs = torch.ones_like(present[0]).expand(len(present[0]), -1).triu(1) & present[:, None]  # (B, K, K)
    right = pairs & (seen[:, :, None] > seen[:, None, :])
    last = seen.gather(1, view.counts[:, None] - 1)[:, 0]
    return loss, {
        "accuracy": right.sum((1, 2)) / pairs.sum((1, 2)).to(seen.dtype),
        "best_first": (torch.where(present, seen, -torch.inf).argmax(1) == 0).to(seen.dtype),
        "range": seen[:, 0] - last,
    }
