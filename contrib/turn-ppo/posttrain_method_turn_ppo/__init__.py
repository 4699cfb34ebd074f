"""PPO over turns: a turn of the model is one action, and a value head says what is to be expected before it.

Papers: Li et al. 2025, "Turn-PPO: Turn-Level Advantage Estimation with PPO for Improved Multi-Turn RL in Agentic LLMs",
arXiv:2512.17008; Schulman et al. 2017, arXiv:1707.06347 (clipping) and 2015, arXiv:1506.02438 (GAE).

Loss in words: before its first token a turn k has the value V_k, what is still to be earned. How much better a turn
turned out than that, summed with a decay over the turns behind it, is the advantage of all of its tokens, whitened over
the turns of the step:

    d_k = r_k + gamma V_(k+1) - V_k,   A_k = d_k + gamma gae_lambda A_(k+1),   return_k = A_k + V_k
    policy_loss = mean over tokens of -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)
    value_loss = value_weight * mean over turns of max((V - return)^2, (V within value_epsilon of V_old - return)^2) / 2

Differs from the paper: ratios are clipped token by token, and the value function is a head on the policy that starts at
0, not a model of its own. There is no divergence in the reward. Without an environment there is one turn: PPO whose
value is that of the prompt.

Metrics:
- explained_variance: share of the variance of the turns' returns that the values foresaw. Rises from 0 towards 1.
- value_error: squared error of the values. Falls; value_clipped: share held by value_epsilon, under 0.3.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    gamma: float = 0.99
    """Discount of what comes a turn later (the paper)."""
    gae_lambda: float = 0.9
    """Decay of later turns' surprises in the advantage (the paper); 1 is return less value."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (arXiv:1707.06347)."""
    value_epsilon: float = 0.2
    """How far a value may leave the one before the update (arXiv:2203.02155)."""
    value_weight: float = 0.1
    """Weight of the value loss (arXiv:1909.08593)."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")


@hookimpl
def posttrain_extra_modules(hidden_size):
    """The value head: what it says of a turn's first token is V before that turn."""
    head = torch.nn.Linear(hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return {"values": head}


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Each token's advantage is its turn's, (B, T); the returns that values learn, and where turns begin."""
    mask, turn = rollouts.mask, rollouts.turn
    begins = mask & (turn != F.pad(turn, (1, 0), value=-1)[:, :-1])  # (B, T)
    counts = begins.sum(1)  # (B,)
    size = int(counts.max().clamp(min=1))
    real = torch.arange(size) < counts[:, None]  # (B, K)
    values = torch.zeros(real.shape, dtype=rewards.dtype).masked_scatter(
        real, rollouts.old("values")[begins].to(rewards)
    )
    earned = torch.where(real, F.pad(rollouts.turn_rewards.to(rewards.dtype), (0, size))[:, :size], 0.0)
    surprise = earned + config.gamma * F.pad(values[:, 1:], (0, 1)) - values  # nothing is expected behind the last
    advantages, following = torch.zeros_like(values), torch.zeros_like(rewards)
    for place in reversed(range(size)):
        following = torch.where(real[:, place], surprise[:, place] + config.gamma * config.gae_lambda * following, 0.0)
        advantages[:, place] = following
    returns = advantages + values
    variance, error = (one[real].var(correction=0) for one in (returns, returns - values))
    white = torch.zeros_like(values).masked_scatter(real, _whitened(advantages[real]))
    return {
        "advantages": white.gather(1, turn.clamp(max=size - 1)) * mask,
        "returns": returns.gather(1, turn.clamp(max=size - 1)) * mask,
        "begins": begins,
        "explained_variance": (1 - error / variance.where(variance > 0, torch.nan)).expand_as(rewards),
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token, clipped value error of each turn."""
    view, width = policy.completion, config.value_epsilon
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    near = batch.old_values + (view.values - batch.old_values).clamp(-width, width)
    free, held = (view.values - batch.returns).square(), (near - batch.returns).square()  # (B, T)
    terms = {
        "policy_loss": PerToken(
            tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon), view.mask
        ),
        "value_loss": PerToken(config.value_weight * 0.5 * torch.maximum(free, held), batch.begins),
    }
    metrics = {
        "value_error": PerToken(free.detach(), batch.begins),
        "value_clipped": PerToken((held > free).to(ratio.dtype), batch.begins),
        "ratio": PerToken(ratio.detach(), view.mask),
        "clip_low": PerToken(((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype), view.mask),
        "clip_high": PerToken(((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype), view.mask),
    }
    return terms, metrics | {"explained_variance": batch.explained_variance}


def _whitened(values: torch.Tensor) -> torch.Tensor:
    """Values (n,) less their mean, in standard deviations; exactly 0 where all are equal."""
    everyone = torch.zeros(len(values), dtype=torch.long)
    centred = values - tensors.group_mean(values, everyone)
    return (centred / (tensors.group_std(values, everyone).square() + 1e-8).sqrt()).nan_to_num(0.0)
