"""VAPO: everything that makes a value-based method work on long chains of thought, together.

Paper: Yue et al. 2025, "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks",
arXiv:2504.05118, section 4; NeMo-RL's implementation.

Loss in words: as in VC-PPO a value head learns whole returns, alone for ``value_pretraining`` batches at first. The
decay of the policy's advantages grows with the length L of an answer, so that the reward reaches the first tokens of
long ones:

    lambda = 1 - 1 / max(length_factor * L, 1)
    policy_loss = mean over tokens of -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)
    value_loss  = value_weight * mean over tokens of max((V - return)^2, (V near V_old - return)^2) / 2
    imitation   = imitation_weight * mean over the tokens of right answers of -log p(token)

V near V_old is held within value_epsilon of it. Advantages are not whitened. A completion counts as right where its
reward is above 0.

Differs from the paper: the value function is a head on the policy, not a model of its own, and starts at 0.

Metrics:
- explained_variance: share of the returns' variance that the values foresaw. Rises from 0 towards 1.
- value_error: squared error of the values. Falls.
- decay: mean lambda. Near 1 for long answers; 0 for those below 1 / length_factor tokens.
- pretraining: 1 while only the values learn, then 0.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.28.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- entropy: of the next-token distribution in nats. Falls slowly; below 0.01 the policy has stopped exploring.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    length_factor: float = 0.05
    """alpha: how the decay grows with the length (the paper)."""
    lambda_critic: float = 1.0
    """Decay in what the values learn: 1 is the whole return (the paper)."""
    value_pretraining: int = 2
    """Batches of rollouts in which only the values learn (the paper: 50 steps of a separate model)."""
    imitation_weight: float = 0.1
    """Weight of the likelihood of right answers (the paper)."""
    value_weight: float = 0.1
    """Weight of the value loss (arXiv:1909.08593)."""
    value_epsilon: float = 0.2
    """How far a value may leave the one before the update (arXiv:2203.02155)."""
    epsilon: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (the paper)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (the paper)."""


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_extra_modules(hidden_size):
    """The value head: what it says of a token is V before that token."""
    head = torch.nn.Linear(hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return {"values": head}


@hookimpl
def posttrain_token_statistics(logits):
    """Entropy of each token, for the log."""
    return {"entropy": tensors.token_entropy(logits)}


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """Advantages decayed by length, the returns that the values learn, and which tokens are imitated: (B, T)."""
    mask, values = rollouts.mask, rollouts.old("values")
    state["batches"] = state.get("batches", 0) + 1
    decay = 1 - 1 / (config.length_factor * rollouts.lengths.to(rewards.dtype)).clamp(min=1)  # (B,)
    returns = torch.where(mask, _gae(rewards, values, mask, config.lambda_critic) + values, 0.0)
    variance, error = (one[mask].var(correction=0) for one in (returns, returns - values))
    return {
        "advantages": _gae(rewards, values, mask, decay),
        "returns": returns,
        "right": mask & (rewards > 0)[:, None],
        "decay": decay,
        "explained_variance": (1 - error / variance.where(variance > 0, torch.nan)).expand_as(rewards),
        "pretraining": torch.full_like(rewards, float(state["batches"] <= config.value_pretraining)),
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient and imitation, once they have begun, and the values' error."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    surrogate = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon_high)
    moved = (view.values - batch.old_values).clamp(-config.value_epsilon, config.value_epsilon)
    held = (batch.old_values + moved - batch.returns).square()  # (B, T)
    error = torch.maximum((view.values - batch.returns).square(), held)
    begun = 1 - batch.pretraining.to(ratio.dtype)[:, None]  # (B, 1)
    terms = {
        "policy_loss": PerToken(begun * surrogate, view.mask),
        "value_loss": PerToken(config.value_weight * 0.5 * error, view.mask),
        "imitation": PerToken(-config.imitation_weight * begun * view.logps, batch.right),
    }
    metrics = {
        "value_error": error.detach(),
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "entropy": view.entropy,
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return terms, metrics | {name: batch.columns[name] for name in ("explained_variance", "decay", "pretraining")}


def _gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, decay) -> torch.Tensor:
    """Sum of a token's own and later surprises (B, T), with this decay, a number or one a row (B,); no discount."""
    last = mask & ~F.pad(mask[:, 1:], (0, 1))  # (B, T)
    surprise = torch.where(last, rewards[:, None], 0.0) + F.pad(values[:, 1:], (0, 1)) - values  # 0 behind the last
    found, following = torch.zeros_like(surprise), torch.zeros_like(rewards)
    for t in reversed(range(mask.shape[1])):
        following = surprise[:, t] + decay * following  # (B,)
        found[:, t] = following
    return torch.where(mask, found, 0.0)
