"""Balanced policy optimisation with adaptive clipping: the bounds move until good tokens weigh enough against bad ones.

Paper: Xi et al. 2025, "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization
with Adaptive Clipping", arXiv:2510.18927.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. On stale samples the gradient is often that of bad tokens alone, and clipping from above takes away what
would balance it. So the bounds of the ratio are found anew for each optimiser step: while good tokens (min(ratio,
upper) A, summed) weigh less against bad ones (max(ratio, lower) |A|) than a target, the lower bound is raised, up to a
limit, then the upper one. With these bounds the policy gradient is clipped; a bad token costs at most dual_clip_c times
its advantage. The mean is over all tokens of the step:

    loss = mean of  -min(ratio A, clip(ratio, lower, upper) A),  where A < 0 no more than -dual_clip_c A

The bounds are worked out from the whole optimiser step before its first forward pass with gradient, at the cost of one
more without.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The order
in which the bounds move is that of the authors' code; the default numbers are quoted at second hand.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- clip_floor, clip_ceiling: the bounds of this step. Both at their largest for long: the target is out of reach.
- balance: weight of good tokens relative to bad ones under these bounds. At least target_pos_neg_ratio.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    lower_start: float = 0.6
    """Lower bound of the ratio to begin with."""
    lower_max: float = 0.9
    """Largest lower bound."""
    lower_step: float = 0.05
    """Step by which it is raised."""
    upper_start: float = 1.2
    """Upper bound of the ratio to begin with."""
    upper_max: float = 3.0
    """Largest upper bound."""
    upper_step: float = 0.02
    """Step by which it is raised."""
    target_pos_neg_ratio: float = 0.4
    """Weight of good tokens relative to bad ones that is wanted."""
    dual_clip_c: float = 3.0
    """Bound of the loss of a bad token, in advantages (verl)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_annotate(examples, models, config):
    """The bounds of the whole step, the same for each example: (B,) each."""
    sequences = [example.sequences["completion"][0] for example in examples]
    logps = models.logps(sequences, "policy")  # (t,) each
    old = torch.cat([one.per_token.get("old_logps", row) for one, row in zip(sequences, logps, strict=True)])
    ratio = tensors.importance_ratio(torch.cat(logps) - old)  # (n,)
    advantages = [example.columns["advantages"] for example in examples]
    worth = torch.cat([torch.full_like(row, a) for row, a in zip(logps, advantages, strict=True)])  # (n,)
    lower, upper = config.lower_start, config.upper_start
    while (balance := _balance(ratio, worth, lower, upper)) < config.target_pos_neg_ratio:
        if lower < config.lower_max:
            lower = min(lower + config.lower_step, config.lower_max)
        elif upper < config.upper_max:
            upper = min(upper + config.upper_step, config.upper_max)
        else:
            break
    found = {"clip_floor": lower, "clip_ceiling": upper, "balance": balance}
    return {name: torch.full((len(examples),), value) for name, value in found.items()}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient of each token, clipped by the step's bounds."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    low, high = (batch.columns[name].to(ratio.dtype)[:, None] for name in ("clip_floor", "clip_ceiling"))  # (B, 1)
    held = ratio.maximum(low).minimum(high)  # (B, T)
    loss = -torch.minimum(ratio * advantages, held * advantages)  # (B, T)
    bad = advantages < 0
    loss = torch.where(bad, loss.minimum(-config.dual_clip_c * advantages), loss)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < low) & bad).to(ratio.dtype),
        "clip_high": ((ratio > high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {name: batch.columns[name] for name in ("clip_floor", "clip_ceiling", "balance")}
    return PerToken(loss, view.mask), metrics


def _balance(ratio: torch.Tensor, worth: torch.Tensor, lower: float, upper: float) -> float:
    """What good tokens weigh under these bounds, relative to bad ones."""
    good, bad = worth.clamp(min=0), -worth.clamp(max=0)  # (n,)
    return float((ratio.clamp(max=upper) * good).sum() / ((ratio.clamp(min=lower) * bad).sum() + 1e-8))
