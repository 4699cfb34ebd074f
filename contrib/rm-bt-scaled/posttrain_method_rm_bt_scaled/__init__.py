"""Scaled Bradley-Terry: a pair weighs as much as its annotators were sure.

Paper: Wang et al. 2024, "HelpSteer2-Preference: Complementing Ratings with Preferences", arXiv:2410.01257, section 3.

Loss: -strength log sigmoid(score(chosen) - score(rejected)), where ``strength`` is a column of the data, such as 1
for slightly better, 2 for better, 3 for much better. A margin asks for a distance; a weight only for more attention.

Differs from the paper: nothing. Rows without ``strength`` count once.

Metrics:
- accuracy: share of pairs scored in the right order. From 0.5 to 0.6 to 0.8 on human data.
- margin: mean difference of the scores. Rises.
- score_chosen, score_rejected: mean scores. Only their difference is learnt, so both may drift.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Scaled Bradley-Terry has no options of its own."""


@hookimpl
def posttrain_loss(batch, policy):
    """Weighted logistic loss, one value a pair."""
    chosen, rejected = policy.chosen.score, policy.rejected.score  # (B,)
    margin = chosen - rejected
    strength = batch.strength.to(margin) if "strength" in batch else 1.0
    return -strength * logsigmoid(margin), {
        "accuracy": (margin > 0).to(margin.dtype),
        "margin": margin.detach(),
        "score_chosen": chosen.detach(),
        "score_rejected": rejected.detach(),
    }
