"""VC-PPO: why PPO fails on long chains of thought, and the two things that mend it, both about the value function.

Paper: Yuan et al. 2025, "What's Behind PPO's Collapse in Long-CoT? Value Optimization Holds the Secret",
arXiv:2503.01491, section 4.

Loss in words: a reward at the end of a long answer decays to nothing on its way to the first tokens if the values are
learnt with a decay below 1; so they learn whole returns (lambda_critic 1), while the policy keeps the less noisy
decayed advantages (lambda_actor), whitened over the step. And values that start from nothing mislead the policy in the
first steps; so for ``value_pretraining`` steps only the values learn:

    policy_loss = mean over tokens of -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)
    value_loss  = value_weight * mean over tokens of max((V - return)^2, (V near V_old - return)^2) / 2

V near V_old is held within value_epsilon of it. There is no divergence from a reference.

Differs from the paper: the value function is a head on the policy, not a model of its own: it starts at 0 and its loss
also moves the shared weights, a little during the pretraining too. The paper pretrains until the loss has converged.

Metrics:
- explained_variance: share of the returns' variance that the values foresaw. Rises from 0 towards 1; raise
  value_pretraining where it is still near 0 when the policy begins.
- value_error: squared error of the values. Falls.
- pretraining: 1 while only the values learn, then 0.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
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

    lambda_actor: float = 0.95
    """Decay of later surprises in the advantage (the paper)."""
    lambda_critic: float = 1.0
    """The same in what the values learn: 1 is the whole return (the paper)."""
    value_pretraining: int = 2
    """Batches of rollouts in which only the values learn (the paper: 50 to 100 steps of a separate model)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    value_weight: float = 0.1
    """Weight of the value loss (arXiv:1909.08593)."""
    value_epsilon: float = 0.2
    """How far a value may leave the one before the update (arXiv:2203.02155)."""

    def __post_init__(self) -> None:
        for name in ("lambda_actor", "lambda_critic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")


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
    """Decayed advantages, whitened over the step, and the returns that the values learn: (B, T)."""
    mask, values = rollouts.mask, rollouts.old("values")
    state["batches"] = state.get("batches", 0) + 1
    returns = _gae(rewards, values, mask, config.lambda_critic) + values
    raw = _gae(rewards, values, mask, config.lambda_actor)[mask]  # (n,)
    variance, error = (one[mask].var(correction=0) for one in (returns, returns - values))
    everyone = torch.zeros(len(raw), dtype=torch.long)
    deviation = (tensors.group_std(raw, everyone).square() + 1e-8).sqrt()
    white = ((raw - tensors.group_mean(raw, everyone)) / deviation).nan_to_num(0.0)
    return {
        "advantages": torch.zeros_like(returns).masked_scatter(mask, white),
        "returns": torch.where(mask, returns, 0.0),
        "explained_variance": (1 - error / variance.where(variance > 0, torch.nan)).expand_as(rewards),
        "pretraining": torch.full_like(rewards, float(state["batches"] <= config.value_pretraining)),
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient, once it has begun, and the values' error."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    surrogate = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
    moved = (view.values - batch.old_values).clamp(-config.value_epsilon, config.value_epsilon)
    held = (batch.old_values + moved - batch.returns).square()  # (B, T)
    error = torch.maximum((view.values - batch.returns).square(), held)
    waiting = batch.pretraining.to(ratio.dtype)[:, None]  # (B, 1)
    terms = {"policy_loss": surrogate * (1 - waiting), "value_loss": config.value_weight * 0.5 * error}
    metrics = {
        "value_error": error.detach(),
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "entropy": view.entropy,
    }
    terms, metrics = ({name: PerToken(v, view.mask) for name, v in one.items()} for one in (terms, metrics))
    return terms, metrics | {name: batch.columns[name] for name in ("explained_variance", "pretraining")}


def _gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, decay) -> torch.Tensor:
    """Sum of a token's own and later surprises (B, T), with this decay, a number or one a row (B,); no discount."""
    last = mask & ~F.pad(mask[:, 1:], (0, 1))  # (B, T)
    surprise = torch.where(last, rewards[:, None], 0.0) + F.pad(values[:, 1:], (0, 1)) - values  # 0 behind the last
    found, following = torch.zeros_like(surprise), torch.zeros_like(rewards)
    for t in reversed(range(mask.shape[1])):
        following = surprise[:, t] + decay * following  # (B,)
        found[:, t] = following
    return torch.where(mask, found, 0.0)
