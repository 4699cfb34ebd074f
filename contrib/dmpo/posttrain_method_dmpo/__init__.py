"""Direct multi-turn preference optimisation: DPO over conversations, whose later turns count less.

Paper: Shi et al. 2024, "Direct Multi-Turn Preference Optimization for Language Agents", arXiv:2406.14868.

Loss in words: each turn t of the T that the model has in a conversation counts with a weight that falls with the turn,
1 for the first; a conversation's reward is beta times the weighted log-ratios of its turns, policy over reference, and
the loss is DPO's:

    phi(t, T) = gamma^t (1 - gamma^(T - t)) / (1 - gamma^T), which is (T - t) / T where gamma is 1
    loss = -log sigmoid(beta (sum_t phi(t, T_chosen) rho_t(chosen) - sum_t phi(t, T_rejected) rho_t(rejected)))

Differs from the paper: nothing. It prints phi with and without the factor gamma^t; the authors' code has it. With
one turn a side it is DPO. Tokens of the environment and of the template are not scored, as everywhere.

Metrics:
- reward_chosen, reward_rejected: beta times the weighted log-ratios. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- turns: turns of the two conversations, on average. At 1 this is DPO.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of DMPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference; smaller values let the policy move further."""
    gamma: float = 0.7
    """Discount of later turns, above 0 and up to 1 (the authors' code)."""

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}, expected a number above 0 and up to 1.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin, turns discounted."""
    reward_chosen = config.beta * _weighted(policy.chosen, reference.chosen, config.gamma)  # (B,)
    reward_rejected = config.beta * _weighted(policy.rejected, reference.rejected, config.gamma)
    margin = reward_chosen - reward_rejected
    turns = (_turns(policy.chosen) + _turns(policy.rejected)) / 2
    return -logsigmoid(margin), {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "turns": turns.to(margin.dtype),
    }


def _turns(view):
    """Turns of each conversation, (B,)."""
    return torch.where(view.mask, view.turn + 1, 0).amax(1).clamp(min=1)


def _weighted(policy, reference, gamma):
    """Log-ratio (B,) of policy to reference in which each token counts as its turn does."""
    turn, count = policy.turn.to(policy.logps), _turns(policy).to(policy.logps)[:, None]  # (B, T), (B, 1)
    if gamma == 1:
        weight = (count - turn) / count
    else:
        weight = gamma**turn * (1 - gamma ** (count - turn)) / (1 - gamma**count)
    return policy.sum_of(weight * (policy.logps - reference.logps))
