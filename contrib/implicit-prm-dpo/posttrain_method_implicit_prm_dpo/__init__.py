"""Implicit process reward model from pairs: DPO's loss, with a right and a wrong solution of the same problem.

Paper: Yuan et al. 2024, "Free Process Rewards without Process Labels", arXiv:2412.01981, section 3 (its DPO variant).

Loss: with the log-ratios rho of policy to reference of whole solutions

    -log sigmoid(beta (rho(right) - rho(wrong)))

The reward of a step is beta times the sum of the tokens' log-ratios over it.

Differs from the paper: nothing. Where ``dpo`` trains a policy with the same loss, this run's product is the pair of
models; score with both, and with the beta of the run.

Metrics:
- reward_chosen, reward_rejected: beta * rho of right and of wrong solutions.
- accuracy: share of pairs in the right order. Rises from 0.5.
- token_reward: mean beta * log-ratio of a right solution's token: what a step of one token is worth.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Scale of the reward (section 4.1)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the difference of rewards, one value a pair."""
    chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    tokens = config.beta * (policy.chosen.logps - reference.chosen.logps)  # (B, T)
    return -F.logsigmoid(chosen - rejected), {
        "reward_chosen": chosen.detach(),
        "reward_rejected": rejected.detach(),
        "accuracy": (chosen > rejected).to(chosen.dtype),
        "token_reward": PerToken(tokens.detach(), policy.chosen.mask),
    }
