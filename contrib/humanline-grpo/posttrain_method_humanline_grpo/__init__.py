"""Humanline GRPO: ratios are taken to a reference that follows the policy, and each token's log-ratio is held in a
band.

Paper: Liu et al. 2025, "Humanline: Online Alignment as Perceptual Loss", arXiv:2509.24207; details as in the authors'
HALOs.

Loss in words: what a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. People perceive probabilities as distorted, and losses that work well online clip them as people do; to clip
them explicitly makes data from anywhere work as well. Each token's log-ratio to the reference is held between
log_epsilon_low and log_epsilon_high, beyond which it has no gradient; its exponential is the ratio of PPO's clipped
product with the advantage. beta times an estimate of the divergence from the reference is added, and the mean taken
over all tokens of the step:

    ratio = exp(clip(log p - log p_reference, log_epsilon_low, log_epsilon_high))
    loss = mean of  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta k3

The reference becomes a copy of the policy every few steps (reference-every), so that it is never far.

Differs from the paper: the standard deviation is the population's plus 0.01, as in the authors' code. There the
reference is always one step behind; here it is copied after every fourth step, so that it is none to three steps
behind.

Metrics:
- ratio: probability relative to the reference, within the band. Near 1.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- held: share of tokens at the ends of the band, without a gradient. Near 0.
- kl: estimate (k3) of the divergence from the reference per token. Small: the reference follows.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    log_epsilon_low: float = -1.0
    """Smallest log-ratio of a token (the authors' log_epsilon_P)."""
    log_epsilon_high: float = 1.5
    """Largest log-ratio of a token (the authors' log_epsilon_R)."""
    epsilon: float = 0.2
    """How far the ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    beta: float = 0.01
    """Weight of the divergence from the reference (the authors' configuration)."""
    advantage_epsilon: float = 0.01
    """Added to the standard deviation (the authors' code)."""

    def __post_init__(self) -> None:
        if not self.log_epsilon_low < 0 < self.log_epsilon_high:
            low, high = self.log_epsilon_low, self.log_epsilon_high
            raise ValueError(
                f"log_epsilon_low is {low} and log_epsilon_high {high}, expected one below and one above 0"
            )


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in the population's standard deviations: (B,)."""
    above = rewards - tensors.group_mean(rewards, rollouts.group)  # (B,)
    deviation = tensors.group_mean(above.square(), rollouts.group).sqrt()
    return (above / (deviation + config.advantage_epsilon)).nan_to_num(0.0)  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped product of the held ratio and the advantage, and the divergence, of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    away = view.logps - reference.completion.logps  # (B, T)
    ratio = away.clamp(config.log_epsilon_low, config.log_epsilon_high).exp()
    kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon) + config.beta * kl
    held = (away <= config.log_epsilon_low) | (away >= config.log_epsilon_high)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "held": held.to(ratio.dtype),
        "kl": kl.detach(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
