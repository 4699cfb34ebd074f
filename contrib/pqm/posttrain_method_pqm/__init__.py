"""Process Q-value model: a comparative loss over the steps of a solution.

Paper: Li and Li 2024, "Process Reward Model with Q-value Rankings", arXiv:2410.11287, equation 10.

Loss: the head gives every step a Q. Of right steps c_1, c_2, ... in order, each should exceed the ones before it; a
root of Q = 0 lies below them; wrong steps W should lie below all by zeta. With n right steps, averaged over the terms:

    -log( exp(Q_(c_t)) / (1 + sum_(q <= t) exp(Q_(c_q)) + sum_(w in W) exp(Q_w + zeta)) ),  t = 1 .. n
    -log( 1 / (1 + sum_(w in W) exp(Q_w + zeta)) ),  where there is a wrong step

Differs from the paper: nothing; its released code counts a right step's own term twice from the second on.

Metrics:
- accuracy: share of steps whose label the sign of Q tells.
- q_good, q_bad: mean Q of right and of wrong steps. The second falls below the first by about zeta.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl

LOW = -1e4


@dataclass(frozen=True)
class Config:
    """Options of the process Q-value model."""

    zeta: float = 4.0
    """Distance asked for between right and wrong steps (the paper: 2 to 16)."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """One value a solution."""
    view, ends = policy.completion, batch.step_end  # (B, T)
    right, wrong = ends & (batch.step_label > 0.5), ends & (batch.step_label <= 0.5)
    q, low = view.scores, torch.full_like(view.scores, LOW)
    below = torch.where(wrong, q + config.zeta, low).logsumexp(-1, keepdim=True)  # (B, 1)
    floor = torch.logaddexp(below, torch.zeros_like(below))  # with the root
    earlier = torch.where(right, q, low).logcumsumexp(-1)  # (B, T)
    each = torch.logaddexp(earlier, floor) - q
    some_wrong = wrong.any(-1).to(q.dtype)  # (B,)
    total = torch.where(right, each, torch.zeros_like(each)).sum(-1) + some_wrong * floor[:, 0]
    loss = total / (right.sum(-1) + some_wrong).clamp(min=1)
    seen = q.detach()
    return loss, {
        "accuracy": PerToken(((seen > 0) == right).to(q.dtype), ends),
        "q_good": PerToken(seen, right),
        "q_bad": PerToken(seen, wrong),
    }
