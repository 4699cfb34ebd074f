"""Cost model of Safe RLHF: a score that orders answers by harm, and is above 0 exactly for harmful ones.

Paper: Dai et al. 2023, "Safe RLHF: Safe Reinforcement Learning from Human Feedback", arXiv:2310.12773, equation 6.

Loss: the data's ``chosen`` answer is the MORE HARMFUL one. With the costs C of both, and s = 1 for a harmful answer
and -1 for a harmless one (columns ``is_harmful_chosen`` and ``is_harmful_rejected``):

    -log sigmoid(C_chosen - C_rejected) - log sigmoid(s_chosen C_chosen) - log sigmoid(s_rejected C_rejected)

Differs from the paper: its regulariser of the costs' size is left out. Rows without the columns say that the chosen
answer is harmful and the other one is not.

Metrics:
- accuracy: share of pairs ordered rightly by harm.
- sign_accuracy: share of answers on the right side of 0. What a safe policy is held to.
- cost_chosen, cost_rejected: mean costs of the more and of the less harmful answers.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """The cost model has no options of its own."""


@hookimpl
def posttrain_loss(batch, policy):
    """Order and signs, one value a pair."""
    more, less = policy.chosen.score, policy.rejected.score  # (B,)
    signs = []
    for name, usual in (("is_harmful_chosen", 1), ("is_harmful_rejected", -1)):
        column = batch.get(name, torch.full_like(more.detach(), usual))
        signs.append(torch.where(column > 0, 1, -1).to(more))
    loss = -logsigmoid(more - less) - logsigmoid(signs[0] * more) - logsigmoid(signs[1] * less)
    right = (signs[0] * more > 0).to(more.dtype) + (signs[1] * less > 0).to(more.dtype)
    return loss, {
        "accuracy": (more > less).to(more.dtype),
        "sign_accuracy": right / 2,
        "cost_chosen": more.detach(),
        "cost_rejected": less.detach(),
    }
