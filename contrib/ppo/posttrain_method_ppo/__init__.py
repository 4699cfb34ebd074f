"""PPO as it is used on language models: a value head says what is to be expected, advantages are estimated with it.

Papers: Schulman et al. 2017, arXiv:1707.06347 (clipping) and 2015, arXiv:1506.02438 (GAE); for language models Ziegler
et al. 2019, arXiv:1909.08593 (KL in the reward), Ouyang et al. 2022, arXiv:2203.02155.

Loss in words: each token is charged kl_weight times its log-ratio to the reference, the last one gets the reward. A
linear head on the model's hidden states, trained with it, predicts before each token what is still to come. How much
better a token turned out than predicted, summed with a decay (GAE), is its advantage, whitened over the step:

    r_t = -kl_weight (log p_old - log p_reference) + [t is last] reward,   d_t = r_t + gamma V_(t+1) - V_t
    A_t = d_t + gamma gae_lambda A_(t+1),   return_t = A_t + V_t,   then A = (A - mean) / sqrt(variance + 1e-8)
    policy_loss = mean over tokens of -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)
    value_loss = value_weight * mean of max((V - return)^2, (V clipped to V_old +- value_epsilon - return)^2) / 2

Differs from the paper: the value function is a head on the policy, not a model of its own, so value_weight also says
how far it may move the shared weights; it starts at 0. A truncated completion counts as ended, without a value behind
it: what it lacks is the reward's affair, or missing_end_penalty's. One optimiser step sees the whole batch of
rollouts unless --minibatches-per-rollout cuts it. With kl_target the weight is adapted as in arXiv:1909.08593,
section 2.2, once a batch.

Metrics:
- explained_variance: share of the returns' variance that the values foresaw. Rises from 0 towards 1 as far as the text
  so far tells the reward (the example's digits do not: it stays near 0 there while the reward rises); below 0 the
  values are worse than their mean: lower the learning rate or raise value_weight.
- value_error: squared error of the values. Falls; value_clipped: share held by value_epsilon, under 0.3.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- kl, kl_weight: log-ratio of a token to the reference and its weight (only with kl_weight). From 0; above 2 a runaway.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    kl_weight: float = 0.05
    """Weight of the divergence from the reference in the reward (TRL). 0 needs no reference."""
    kl_target: float | None = None
    """Divergence of a whole completion, in nats, to which kl_weight is adapted (arXiv:1909.08593: 6). None: fixed."""
    gamma: float = 1.0
    """Discount of what comes a token later (arXiv:2203.02155)."""
    gae_lambda: float = 0.95
    """Decay of later surprises in the advantage (arXiv:1909.08593); 1 is return less value."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (arXiv:1707.06347)."""
    value_epsilon: float = 0.2
    """How far a value may leave the one before the update (arXiv:2203.02155)."""
    value_weight: float = 0.1
    """Weight of the value loss (arXiv:1909.08593)."""
    missing_end_penalty: float = 0.0
    """Taken from the reward of completions that were cut off (TRL: missing_eos_penalty)."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from 0 to 1")
        if self.kl_target is not None and (self.kl_target <= 0 or not self.kl_weight):
            raise ValueError(f"kl_target {self.kl_target} adapts kl_weight {self.kl_weight}; both have to be above 0")


@hookimpl
def posttrain_extra_modules(hidden_size):
    """The value head: what it says of a token is V before that token."""
    head = torch.nn.Linear(hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return {"values": head}


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """Generalised advantages, whitened over all tokens of the step, and the returns that the values learn: (B, T)."""
    mask, values, columns = rollouts.mask, rollouts.old("values"), {}
    last = mask & ~F.pad(mask[:, 1:], (0, 1))  # (B, T)
    rewards = rewards - config.missing_end_penalty * (~rollouts.finished).to(rewards.dtype)
    token_rewards = torch.where(last, rewards[:, None], 0.0)  # (B, T)
    if config.kl_weight:
        weight = state.get("kl_weight", config.kl_weight)
        kl = torch.where(mask, tensors.kl_k1(rollouts.old_logps, rollouts.reference_logps), 0.0)  # (B, T)
        token_rewards = token_rewards - weight * kl
        columns["kl_weight"] = torch.full_like(rewards, weight)
        if config.kl_target is not None:
            error = float(kl.sum(1).mean()) / config.kl_target - 1
            state["kl_weight"] = weight * (1 + 0.1 * min(max(error, -0.2), 0.2))
    surprise = token_rewards + config.gamma * F.pad(values[:, 1:], (0, 1)) - values  # values behind the last are 0
    advantages, following = torch.zeros_like(surprise), torch.zeros_like(rewards)
    for t in reversed(range(mask.shape[1])):
        following = surprise[:, t] + config.gamma * config.gae_lambda * following  # (B,)
        advantages[:, t] = following
    returns = advantages + values
    variance, error = (one[mask].var(correction=0) for one in (returns, returns - values))
    columns |= {
        "returns": returns,
        "explained_variance": (1 - error / variance.where(variance > 0, torch.nan)).expand_as(rewards),
    }
    return columns | {"advantages": torch.zeros_like(returns).masked_scatter(mask, _whitened(advantages[mask]))}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient and clipped value error of each token."""
    view, width = policy.completion, config.value_epsilon
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    near = batch.old_values + (view.values - batch.old_values).clamp(-width, width)
    free, held = (view.values - batch.returns).square(), (near - batch.returns).square()  # (B, T)
    terms = {
        "policy_loss": tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon),
        "value_loss": config.value_weight * 0.5 * torch.maximum(free, held),
    }
    metrics = {
        "value_error": free.detach(),
        "value_clipped": (held > free).to(ratio.dtype),
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    if config.kl_weight:
        metrics["kl"] = tensors.kl_k1(view.logps.detach(), reference.completion.logps)
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {name: batch.columns[name] for name in ("explained_variance", "kl_weight") if name in batch}
    return {name: PerToken(values, view.mask) for name, values in terms.items()}, metrics


def _whitened(values: torch.Tensor) -> torch.Tensor:
    """Values (n,) less their mean, in standard deviations; exactly 0 where all are equal."""
    everyone = torch.zeros(len(values), dtype=torch.long)
    centred = values - tensors.group_mean(values, everyone)
    return (centred / (tensors.group_std(values, everyone).square() + 1e-8).sqrt()).nan_to_num(0.0)
