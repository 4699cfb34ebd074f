"""Divergence PPO: a token leaves the loss when its probability has moved too far, not when its ratio has.

Paper: 2026, "Rethinking the Trust Region in LLM Reinforcement Learning", arXiv:2602.04879.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. A ratio says little of a divergence: a rare token may double without any harm, while a likely one may not
move by a tenth. So a token is left out where its probability has moved further than delta from the one with which the
generator sampled it, in the direction in which the advantage pushes: as a difference of probabilities (the total
variation of the choice between this token and any other), or by the Kullback-Leibler divergence of that choice:

    loss = -(sum over all tokens of  r A [kept]) / number of tokens,   r = p / p_sampled

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Do not
set --correction as well: the difference to the generator would count twice.

Metrics:
- ratio: probability relative to the generator's. Near 1.
- left_out_low, left_out_high: share of tokens that are left out because they fell or rose too far. Under 0.1.
- apart: mean divergence of a token from the policy that sampled it. Near 0.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    divergence: Literal["binary_tv", "binary_kl"] = "binary_tv"
    """Difference of probabilities, or Kullback-Leibler divergence between taking and not taking the token."""
    delta_low: float = 0.2
    """Largest divergence of a token of a bad completion whose probability fell (SkyRL)."""
    delta_high: float = 0.2
    """Largest divergence of a token of a good completion whose probability rose (SkyRL)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient of the tokens that are still near the policy that sampled them."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.sampled_logps)  # (B, T)
    now, then = view.logps.detach().exp(), batch.sampled_logps.exp()  # (B, T)
    apart = (now - then).abs() if config.divergence == "binary_tv" else _divergence(then, now)  # (B, T)
    gone_up = (advantages > 0) & (now > then) & (apart > config.delta_high)
    gone_down = (advantages < 0) & (now < then) & (apart > config.delta_low)
    kept = ~(gone_up | gone_down)
    loss = torch.where(kept, -ratio * advantages, torch.zeros_like(ratio))  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "left_out_low": gone_down.to(ratio.dtype),
        "left_out_high": gone_up.to(ratio.dtype),
        "apart": apart,
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}


def _divergence(then: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of two choices with these probabilities, in nats, of the same shape."""
    tiny = torch.finfo(torch.float32).eps
    then, now = then.clamp(tiny, 1 - tiny), now.clamp(tiny, 1 - tiny)
    return then * (then / now).log() + (1 - then) * ((1 - then) / (1 - now)).log()
