"""Masked importance sampling (IcePop): GRPO without the tokens on which generator and trainer disagree too much.

Paper: Ling Team 2025, "Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model",
arXiv:2510.18855.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio to the trainer's policy before the update is multiplied by this and clipped. The token's
loss is multiplied by its probability under that policy relative to the generator's where this weight lies between
``lowest`` and ``highest``, and by 0 elsewhere: what the two disagree on is noise. The mean is over all tokens of the
step, also those left out:

    loss = mean of  constant(rho [lowest <= rho <= highest]) * -min(ratio A, clip(ratio) A),   rho = p_old / p_sampled

With level "sequence" rho is that of the whole completion, a product; with "geometric" only the bounds are checked
against the completion's geometric mean, and the weights stay the tokens' own.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The
bounds are TRL's, the paper has 0.5 and 5. Do not set --correction as well: the weights would count twice.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- sampler_weight: probability under the trainer's policy relative to the generator's. 1 where both agree; the core's
  sampler_difference says by how much they do not.
- left_out: share of tokens that are not learnt from. Near 0; above 0.05 the generator is too far away.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    lowest: float = 0.5
    """Smallest weight that is learnt from (TRL and the paper)."""
    highest: float = 2.0
    """Largest weight that is learnt from (TRL; the paper: 5)."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """What the bounds are checked against: each token, the completion's product, or its geometric mean."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_token_weights(batch, policy, config):
    """The ratio of the trainer's policy before the update to the generator's, 0 out of bounds: (B, T)."""
    view = policy.completion
    away = batch.old_logps - batch.sampled_logps  # (B, T)
    whole = {"token": away, "sequence": view.sum_of(away)[:, None], "geometric": view.mean_of(away)[:, None]}
    checked = tensors.importance_ratio(whole[config.level]).expand_as(away)  # (B, T)
    weight = tensors.importance_ratio(away) if config.level == "geometric" else checked
    kept = (checked >= config.lowest) & (checked <= config.highest)
    metrics = {"sampler_weight": weight, "left_out": (~kept).to(weight.dtype)}
    weights = torch.where(kept, weight, torch.zeros_like(weight))
    return weights, {name: PerToken(values, view.mask) for name, values in metrics.items()}
