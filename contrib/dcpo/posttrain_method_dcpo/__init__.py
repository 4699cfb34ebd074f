"""Dynamic clipping policy optimisation: bounds that depend on a token's probability, advantages that remember the
prompt.

Paper: Yang et al. 2025, "DCPO: Dynamic Clipping Policy Optimization", arXiv:2509.02333; details as in the authors'
code.

Loss in words: rewards are standardised twice, by the group's own mean and deviation, and by those of all rewards that
the prompt has had so far. With T the number of times that it has been sampled, the two are mixed with the weights 1 / T
and 1 - 1 / T, either way round, and what is nearer to 0 is the advantage: a group with equal rewards may still teach.
Each token's ratio is clipped between bounds that are the wider, the smaller the probability p was with which it was
sampled, and a bad token costs at most dual_clip_c times its advantage:

    low = (1 + sqrt(max(1 - 4 eps_low / p, 0))) / 2,   high = min((1 + sqrt(1 + 4 eps_high / p)) / 2, r_max)
    loss = sum over the step's completions of  the mean over tokens of  -min(ratio A, clip(ratio, low, high) A)

Differs from the paper: the standard deviation is the sample's with nothing added; where it is 0 the advantage is 0. The
widths are quoted at second hand. The sum over completions, not their mean, is the authors': the loss grows with the
batch, and max-grad-norm bites sooner.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. A tenth of what fixed bounds clip.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import json
import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    eps_low: float = 0.16
    """Width of the range below."""
    eps_high: float = 0.2
    """Width of the range above."""
    r_max: float = 10.0
    """Largest upper bound."""
    dual_clip_c: float = 3.0
    """Bound of the loss of a bad token, in advantages (the authors' code)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, state):
    """The smaller mixture of the rewards standardised by the group and by the prompt's history: (B,)."""
    history = state.setdefault("history", {})
    mean, deviation = (function(rewards, rollouts.group) for function in (tensors.group_mean, tensors.group_std))
    advantages = torch.zeros_like(rewards)
    for group in rollouts.group.unique():
        rows = (rollouts.group == group).nonzero()[:, 0]
        prompt, new_mean, new_std = rollouts.prompts[rows[0]], float(mean[rows[0]]), float(deviation[rows[0]])
        if math.isnan(new_mean):
            continue  # nobody scored it
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
        known = history.get(key, {"steps": 0, "mean": new_mean, "std": new_std})
        n, total = known["steps"], known["steps"] + 1
        between = n / total * (new_mean - known["mean"]) ** 2
        all_mean = known["mean"] + (new_mean - known["mean"]) / total
        all_std = ((n * known["std"] ** 2 + new_std**2 + between) / total) ** 0.5
        history[key] = {"steps": total, "mean": all_mean, "std": all_std}
        own, whole = _standard(rewards[rows], new_mean, new_std), _standard(rewards[rows], all_mean, all_std)
        one, other = whole / total + (1 - 1 / total) * own, own / total + (1 - 1 / total) * whole
        advantages[rows] = torch.where(one.abs() < other.abs(), one, other)
    return advantages.nan_to_num(0.0)


@hookimpl
def posttrain_annotate(examples):
    """The number of completions of the step: (B,)."""
    return {"completions": torch.full((len(examples),), float(len(examples)))}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient clipped by each token's own bounds; the sum over completions."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    rarity = 4 * (-batch.old_logps).exp()  # (B, T)
    low = (1 + (1 - config.eps_low * rarity).clamp(min=0).sqrt()) / 2  # (B, T)
    high = ((1 + (1 + config.eps_high * rarity).sqrt()) / 2).clamp(max=config.r_max)  # (B, T)
    loss = -torch.minimum(ratio * advantages, ratio.maximum(low).minimum(high) * advantages)  # (B, T)
    bad = advantages < 0
    loss = torch.where(bad, loss.minimum(-config.dual_clip_c * advantages), loss)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < low) & bad).to(ratio.dtype),
        "clip_high": ((ratio > high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    return batch.completions.to(ratio.dtype) * view.mean_of(loss), metrics


def _standard(rewards: torch.Tensor, mean: float, deviation: float) -> torch.Tensor:
    return (rewards - mean) / deviation if deviation > 0 else torch.zeros_like(rewards)
