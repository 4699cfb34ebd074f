"""REBEL: reinforcement learning as a regression of relative rewards on relative log-ratios, without a value network.

Paper: Gao et al. 2024, "REBEL: Reinforcement Learning via Regressing Relative Rewards", arXiv:2404.16767, algorithm 1.

Loss in words: the policy answers each prompt twice. Mirror descent would give the next policy log-ratios to this one
that are eta times the reward, up to a constant of the prompt, which the difference of two answers does not have:

    loss = (1 / eta * [(log p - log p_t)(first) - (log p - log p_t)(second)] - [R(first) - R(second)])^2

The policy p_t of the iteration is the reference, renewed after every --reference-every steps, which has to be
--updates-per-rollout: with both at 4, each batch of answers is regressed in four steps against the policy that gave
it.

Differs from the paper: the authors' code multiplies the loss by eta squared and lowers rewards by an adaptive
divergence from the first model; that is left out.

Metrics:
- residual: mean absolute difference of the two brackets. Falls within the steps of an iteration.
- margin: log-ratio of the better answer minus the other's, over eta. 0 at the beginning of each iteration.
- reward_gap: mean difference of rewards within a pair. 0 means nothing to learn.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    eta: float = 1.0
    """Step size: how far log-ratios follow rewards (the paper tunes 1e-4 to 1 by the scale of the rewards)."""

    def __post_init__(self) -> None:
        if self.eta <= 0:
            raise ValueError(f"eta is {self.eta}, expected a number above 0")


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_select(rollouts, rewards):
    """Two answers of a prompt each, the better one first."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(rollouts.group.tolist()):
        places.setdefault(group, []).append(place)
    pairs = [(own[i], own[i + 1]) for own in places.values() for i in range(0, len(own) - 1, 2)]
    pairs = [(a, b) if rewards[a] >= rewards[b] else (b, a) for a, b in pairs]
    chosen, rejected = (
        torch.tensor([float(rewards[pair[side]]) for pair in pairs], dtype=torch.float64) for side in (0, 1)
    )
    return Selection(pairs=pairs, columns={"chosen_rewards": chosen, "rejected_rewards": rejected})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared residual of each pair."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    margin = (log_ratio_chosen - log_ratio_rejected) / config.eta
    gap = (batch.chosen_rewards - batch.rejected_rewards).to(margin.dtype)
    residual = margin - gap
    return residual.square(), {"residual": residual.detach().abs(), "margin": margin.detach(), "reward_gap": gap}
