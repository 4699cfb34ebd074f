"""The default loss of prime-rl: DPPO's mask, and a squared log-ratio on all tokens.

Papers: the mask is that of "Rethinking the Trust Region in LLM Reinforcement Learning", 2026, arXiv:2602.04879, the
regulariser that of "Kimi K2.5: Visual Agentic Intelligence", 2026, arXiv:2602.02276; together they are prime-rl's
default loss.

Loss in words: what a completion is worth is its reward minus the mean of its group. The ratio of a token to the
probability with which the generator sampled it is multiplied by this, unless that probability has moved further than a
bound in the direction of the advantage. The squared log-ratio, with a small weight, pulls back all tokens, also those
left out. The mean is over all tokens of the step:

    loss = mean of  -A [kept] p / p_sampled + kl_tau (log p - log p_sampled)^2

With ``symmetric`` a token is left out where its probability has moved by more than 0.1 in whatever direction.

Differs from the paper: the two are joined as in prime-rl. Do not set --correction as well: the difference to the
generator would count twice.

Metrics:
- ratio: probability relative to the generator's. Near 1.
- left_out: share of tokens whose probability has moved too far. Under 0.1.
- mismatch_kl: estimate (k3) of the divergence between the policy and the generator. Near 0.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    mask_low: float = 0.2
    """How far a bad token's probability may fall before it is left out (prime-rl)."""
    mask_high: float = 0.2
    """How far a good token's probability may rise before it is left out (prime-rl)."""
    kl_tau: float = 1e-3
    """Weight of the squared log-ratio (prime-rl)."""
    adv_tau: float = 1.0
    """Weight of the advantage (prime-rl)."""
    symmetric: bool = False
    """Leave out what has moved by more than 0.1 either way (prime-rl's loss "ipo")."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far each reward lies above its group's mean: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient of the tokens near their sampler, and the squared log-ratio of all."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    log_ratio = view.logps - batch.sampled_logps  # (B, T)
    ratio = tensors.importance_ratio(log_ratio)
    moved = view.logps.detach().exp() - batch.sampled_logps.exp()  # (B, T)
    far = torch.where(advantages > 0, moved > config.mask_high, moved < -config.mask_low)
    far = moved.abs() > 0.1 if config.symmetric else far
    gain = torch.where(far, torch.zeros_like(ratio), config.adv_tau * advantages * ratio)  # (B, T)
    loss = config.kl_tau * log_ratio.square() - gain  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "left_out": far.to(ratio.dtype),
        "mismatch_kl": (ratio - 1 - log_ratio).detach(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
