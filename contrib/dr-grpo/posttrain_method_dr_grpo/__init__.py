"""GRPO done right: policy gradient with rewards compared within a group, without two biases of GRPO.

Paper: Liu et al. 2025, "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv:2503.20783, section 3.

Loss in words: what a completion is worth is its reward minus the mean of its group. It is not divided by the group's
standard deviation, which would give more weight to prompts that are nearly always or nearly never solved. Each token's
probability relative to the policy that sampled it is multiplied by this advantage and clipped. The sum over a
completion's tokens is divided by one constant for all, not by the completion's own length, which would make long wrong
answers cheap; then completions are averaged:

    loss = mean over completions of  -1/L  sum over tokens of  min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)

Differs from the paper: L is the longest completion that may be sampled, 3000 tokens there and max-new-tokens here.
With AdamW another L changes no more than how often gradients are clipped. The paper has no divergence from a reference;
``beta`` adds one (k3, summed over tokens and divided by L like the rest).

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage, in units of the reward; with rewards of 0 and 1 at most 0.5.
- zero_advantage: share of completions that teach nothing, mostly of groups with equal rewards. Above 0.8 the task is
  too easy or too hard.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    constant_length: int | None = None
    """Divisor L of each completion's sum over tokens; None is max-new-tokens (the paper, section 3.2)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    beta: float = 0.0
    """Weight of the divergence from the reference (the paper, section 3: none). 0 needs no reference."""

    def __post_init__(self) -> None:
        if self.constant_length is not None and self.constant_length < 1:
            raise ValueError(f"constant_length is {self.constant_length}, expected a number of tokens from 1")


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far each reward lies above its group's mean: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient, summed over a completion's tokens and divided by a constant."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    size = batch.advantages.abs()  # (B,)
    metrics |= {"advantage_size": size, "zero_advantage": (size == 0).to(size.dtype)}
    return view.sum_of(loss) / config.constant_length, metrics
