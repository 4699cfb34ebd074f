"""Two-sided clipping: GRPO whose ratio is bounded from above also where the advantage is negative.

Paper: Prime Intellect 2025, "INTELLECT-2: A Reasoning Model Trained Through Globally Decentralized Reinforcement
Learning", arXiv:2505.07291, section 3.4.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. PPO's minimum does not bound the loss of a bad token that has become much likelier, and one such token can
spoil a run. Its ratio is held below ``delta``; beta times an estimate of the divergence from the reference is added.
The mean is over a completion's tokens, then over completions:

    loss = -min(min(ratio, delta) A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta k3

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- over_delta: share of tokens held at delta. 0 in the first update; above 0.01 the policy moves too fast.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    delta: float = 4.0
    """Largest ratio where the advantage is negative; above 1 + epsilon (the paper, section 3.4)."""
    beta: float = 0.001
    """Weight of the divergence from the reference (the paper, section 4). 0 needs no reference."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if self.delta <= 1 + self.epsilon:
            raise ValueError(f"delta is {self.delta}, expected a number above 1 + epsilon, {1 + self.epsilon}")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient and the divergence, averaged over a completion's tokens."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon, cap=config.delta)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "over_delta": ((ratio > config.delta) & (advantages < 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    return view.mean_of(loss), {name: PerToken(values, view.mask) for name, values in metrics.items()}
