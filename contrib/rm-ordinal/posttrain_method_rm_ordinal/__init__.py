"""Ordinal feedback: a pair's label is a level between 0 and 1, not only which answer is better.

Paper: Liu et al. 2024, "Reward Modeling with Ordinal Feedback: Wisdom of the Crowd", arXiv:2411.12843, section 3.

Loss: with d = score(chosen) - score(rejected) and the column ``level`` z, the share of people who would prefer the
first (1 certain, 0.8 slightly better, 0.5 a tie):

    -z log sigmoid(d) - (1 - z) log sigmoid(-d)

Differs from the paper: nothing. Rows without ``level`` have the level 1.

Metrics:
- accuracy: share of pairs scored on the side of 0.5 that their level is on.
- margin: mean difference of the scores. Settles where sigmoid(d) meets the levels.
- level: mean level of the data.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Ordinal feedback has no options of its own."""


@hookimpl
def posttrain_loss(batch, policy):
    """Cross-entropy with the level, one value a pair."""
    margin = policy.chosen.score - policy.rejected.score  # (B,)
    level = batch.level.to(margin) if "level" in batch else torch.ones_like(margin.detach())
    loss = -level * logsigmoid(margin) - (1 - level) * logsigmoid(-margin)
    return loss, {
        "accuracy": ((margin > 0) == (level > 0.5)).to(margin.dtype),
        "margin": margin.detach(),
        "level": level,
    }
