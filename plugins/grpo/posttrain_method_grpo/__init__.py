"""Group relative policy optimisation: several completions of a prompt compete, and no value model is needed.

Paper: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1. Options come from its successors: DAPO
(arXiv:2503.14476), Dr. GRPO (arXiv:2503.20783), GSPO (arXiv:2507.18071), two-sided clipping (arXiv:2505.07291).

Loss: what a completion is worth is its reward minus the mean of its group, divided by the group's standard deviation.
Each token's probability relative to the policy that sampled it is multiplied by this advantage and clipped, so that
one batch cannot move the policy far; beta times an estimate of the divergence from the reference is added. The loss is
the mean over the tokens of a completion, then over completions.

Differs from the paper: nothing with the default options, whose spread is the sample standard deviation plus 1e-4.
``aggregation``, ``importance_level``, ``scale_rewards``, ``epsilon_high`` and ``delta`` give the successors' losses.
A group whose rewards are all equal has advantages of exactly 0; so has a completion that is alone or has no reward.

Metrics:
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3 (level "sequence": about 0.15 each).
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
- zero_advantage: share of completions that teach nothing, mostly of groups with equal rewards. Above 0.8 the task is
  too easy or too hard.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of group relative policy optimisation."""

    beta: float = 0.04
    """Weight of the divergence from the reference (arXiv:2402.03300 section 4.2). 0 needs no reference (DAPO, Dr. GRPO,
    TRL's default)."""
    epsilon: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (PPO). GSPO: 3e-4."""
    epsilon_high: float | None = None
    """How far the ratio may rise above 1; None is epsilon. DAPO: 0.28, GSPO: 4e-4."""
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative, above 1 + epsilon_high (INTELLECT-2: 4). None: no
    bound, as in the paper."""
    importance_level: Literal["token", "sequence"] = "token"
    """Ratio of each token, or the geometric mean over the completion (GSPO)."""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """Average over a completion's tokens, then completions (GRPO); over all tokens of the step (DAPO); or the sum over
    tokens divided by constant_length (Dr. GRPO)."""
    constant_length: int | None = None
    """Divisor of aggregation 'constant'; None is max-new-tokens (arXiv:2503.20783)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group (GRPO), of all rewards of the step, or not at all
    (Dr. GRPO)."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviation (TRL)."""

    def __post_init__(self) -> None:
        if self.constant_length is not None and self.constant_length < 1:
            raise ValueError(f"constant_length is {self.constant_length}, expected a number of tokens from 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    advantages = rewards - tensors.group_mean(rewards, rollouts.group)
    if config.scale_rewards != "none":
        compared = rollouts.group if config.scale_rewards == "group" else torch.zeros_like(rollouts.group)
        advantages = advantages / (tensors.group_std(rewards, compared) + config.advantage_epsilon)
    return advantages.nan_to_num(0.0)  # a completion without a reward teaches nothing


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient and the divergence from the reference."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1) or (B, T)
    log_ratio = view.logps - batch.old_logps  # (B, T)
    if config.importance_level == "sequence":
        log_ratio = view.mean_of(log_ratio)[:, None]  # (B, 1)
    ratio = tensors.importance_ratio(log_ratio)
    low, high = config.epsilon, config.epsilon if config.epsilon_high is None else config.epsilon_high
    loss = tensors.clipped_surrogate(ratio, advantages, low, high, cap=config.delta).expand_as(view.logps)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + high) & (advantages > 0)).to(ratio.dtype),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    metrics = {name: PerToken(values.expand_as(loss), view.mask) for name, values in metrics.items()}
    size = view.mean_of(advantages.abs().expand_as(loss))  # (B,)
    metrics |= {"advantage_size": size, "zero_advantage": (size == 0).to(size.dtype)}
    if config.aggregation == "token":
        return PerToken(loss, view.mask), metrics
    if config.aggregation == "constant":
        return view.sum_of(loss) / config.constant_length, metrics
    return view.mean_of(loss), metrics
