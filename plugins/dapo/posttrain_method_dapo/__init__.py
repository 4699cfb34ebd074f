"""DAPO: GRPO for long answers. Prompts without a signal are replaced, clipping is wider upwards, length is punished.

Paper: Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv:2503.14476, section 3.

Loss in words: a prompt whose completions all have the same reward teaches nothing; it is left out, and further prompts
are sampled until the step has as many as it should (dynamic sampling; at most generation-rounds batches). What a
completion is worth is its reward minus its group's mean, divided by the group's standard deviation. Each token's ratio
to the policy that sampled it is multiplied by this and clipped, further up than down, so that unlikely tokens can still
gain (clip-higher). The mean is over all tokens of the step, so that long answers count in full:

    loss = -(sum over all tokens of min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)) / number of tokens

There is no divergence from a reference. The reward is lowered, before it is compared, for completions that come near
the longest length: not at all up to longest - buffer, then by a line to -1 at longest (soft overlong punishment).

Differs from the paper: the lengths follow max-new-tokens, with the paper's proportion (buffer 4096 of 20480, a fifth).
Truncated completions are learnt from with the punishment, as in the authors' code; the paper's other way, to leave
them out of the loss, is --mask-truncated. Dynamic sampling looks at the rewards before the punishment. When no round
brings a signal, the last one is taken as it is, and its gradient is 0.

Metrics:
- rollouts_learnt: share of the sampled completions that were learnt from. Falls as prompts get solved; at 0.2 each step
  costs five times its sampling, and harder prompts are due.
- generation_rounds: batches of prompts that were sampled for the step. 1 to 4; at generation-rounds steps are not full.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.28.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- entropy: of the next-token distribution in nats. Should not collapse; below 0.01 the policy has stopped exploring.
- overlong_punishment: mean of what was taken from the reward, from -1 to 0. Near -1 everything is too long: raise
  --max-new-tokens. Zero without a buffer.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (the paper, section 4.1)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (the paper, section 4.1)."""
    dynamic_sampling: bool = True
    """Leave out prompts whose rewards are all equal and sample others for them."""
    longest: int | None = None
    """Tokens of a completion at which the punishment is full; None is max-new-tokens."""
    overlong_buffer: int | None = None
    """Tokens before the longest length over which the punishment grows; 0 is no punishment, None a fifth of the longest
    (the paper: 4096 of 20480)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (the authors' code)."""

    def __post_init__(self) -> None:
        if self.overlong_buffer is not None and self.overlong_buffer < 0:
            raise ValueError(f"overlong_buffer is {self.overlong_buffer}, expected a number of tokens from 0")


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """Only groups whose rewards differ; the step is filled up with other prompts."""
    if not config.dynamic_sampling:
        return Selection()
    mixed = tensors.group_std(rewards, rollouts.group) > 0  # (B,)
    kept = [item for item, differs in zip(rollouts.items, mixed.tolist(), strict=True) if differs]
    return Selection(kept, refill=True)


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward, less the punishment for its length, lies above its group's mean, in deviations: (B,)."""
    punishment = _overlong(rollouts.lengths.to(rewards.dtype), config)  # (B,)
    shaped = rewards + punishment
    advantages = tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon)  # (B,)
    return {"advantages": advantages, "overlong_punishment": punishment}  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("overlong_punishment",))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}


def _overlong(lengths: torch.Tensor, config: Config) -> torch.Tensor:
    """Section 3.4, for completions of these lengths (B,): 0, a line, or -1."""
    assert config.longest is not None  # it follows max-new-tokens
    buffer = config.longest // 5 if config.overlong_buffer is None else config.overlong_buffer
    if not buffer:
        return torch.zeros_like(lengths)
    return ((config.longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)
