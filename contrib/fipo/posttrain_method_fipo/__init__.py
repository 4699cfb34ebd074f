"""Future-KL influenced policy optimisation: tokens are weighted by how the policy has since moved on what follows them.

Paper: 2026, "FIPO", arXiv:2603.19835; the loss as in ms-swift (loss_type fipo).

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. All tokens of a completion get it, though few of them decided anything. The sum of the log-ratios from a
token to the end, each further one discounted, says whether what it led to has become likelier; its exponential, clipped
and held constant, weighs the token's advantage in the clipped policy gradient, averaged over all tokens of the step:

    f_t = constant(clip(exp(sum over k >= t of 2^(-(k - t) / decay_rate) (log p_k - log p_old,k)), 1, 1 + clip_range))
    loss = mean of  f -min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A)

Where A < 0 and the ratio exceeds the safety threshold, f is held between 0.8 and 1. In the first update of a batch f is
1: updates-per-rollout or minibatches-per-rollout have to be above 1 for it to matter.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. As in ms-
swift, f has no lower side with clip_high_only.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- future_kl: discounted sum of the log-ratios from a token on. 0 in the first update of a batch.
- weight: of a token. 1 in the first update of a batch, then up to 1 + clip_range.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    decay_rate: float = 32.0
    """Tokens after which a later log-ratio counts half (ms-swift)."""
    clip_range: float = 0.2
    """How far the weight may leave 1 (ms-swift)."""
    clip_high_only: bool = True
    """Let the weight leave 1 upwards only (ms-swift)."""
    safety_threshold: float = 4.0
    """Ratio of a bad token above which its weight may not grow (ms-swift)."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token, weighted by what has become of the tokens behind it."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    log_ratio = (view.logps - batch.old_logps).detach()  # (B, T)
    future = tensors.returns_to_go(log_ratio, view.mask, 2 ** (-1 / config.decay_rate))  # (B, T)
    lowest = 1.0 if config.clip_high_only else 1 - config.clip_range
    weight = tensors.importance_ratio(future).clamp(lowest, 1 + config.clip_range)  # (B, T)
    unsafe = (advantages < 0) & (ratio.detach() > config.safety_threshold)
    weight = torch.where(unsafe, weight.clamp(0.8, 1.0), weight)
    loss = weight * tensors.clipped_surrogate(ratio, advantages, config.epsilon_low, config.epsilon_high)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "future_kl": future,
        "weight": weight,
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
