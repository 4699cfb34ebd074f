"""alpha-DPO: SimPO with a margin that adapts to how the policy already differs from the reference.

Paper: Wu et al. 2024, "alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs",
arXiv:2410.10148.

Loss: u is the difference of the mean log-probabilities of chosen and rejected answer. The loss is the negative log-
sigmoid of beta times u less a target, gamma + alpha z: z says by how many deviations the pair's excess over the
reference, u less the same under the reference, lies above the moving mean of such excesses. No gradient passes through
the target.

Differs from the paper: excess, moving mean and deviation (rate 0.1) come from a pass over the whole optimiser step,
over all devices, without gradient. They start from the first step's pairs: the authors' code starts from 0 and divides
by it. A deviation below 0.01 counts as 0.01. gamma is given before the multiplication by beta.

Metrics:
- target: beta times the target. Its mean stays near beta gamma.
- ema_mean, ema_std: moving mean and deviation of the excess; the mean rises.
- margin: beta times u, the target not subtracted. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of alpha-DPO."""

    beta: float = 2.5
    """Scale of the rewards (arXiv:2410.10148: 2.5 to 10)."""
    gamma: float = 0.3
    """Target of the difference of mean log-probabilities, before beta."""
    alpha: float = 0.1
    """How far the target follows a pair's excess over the reference; 0 is SimPO."""


@hookimpl
def posttrain_annotate(examples, models, state):
    """Excess of each pair over the reference, and its moving mean and deviation."""
    excess = torch.zeros(len(examples), dtype=torch.float64)  # (B,)
    for role, sign in (("chosen", 1), ("rejected", -1)):
        rows = [example.sequences[role][0] for example in examples]
        pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
        sums = [(ours - theirs).sum() / max(len(ours), 1) for ours, theirs in pairs]
        excess += sign * torch.stack(sums)
    mean, spread = float(excess.mean()), float(excess.std(correction=0))
    state["mean"] = 0.9 * state.get("mean", mean) + 0.1 * mean
    state["std"] = 0.9 * state.get("std", spread) + 0.1 * spread
    columns = {"ema_mean": state["mean"], "ema_std": state["std"]}
    return {"excess": excess} | {name: torch.full_like(excess, value) for name, value in columns.items()}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the margin beyond the pair's target."""
    margin = config.beta * (policy.chosen.mean - policy.rejected.mean)  # (B,)
    mean, std = batch.ema_mean.to(margin), batch.ema_std.to(margin)
    unusual = (batch.excess.to(margin) - mean) / std.clamp(min=0.01)
    target = config.beta * (config.gamma + config.alpha * unusual)
    loss = -logsigmoid(margin - target)  # (B,)
    return loss, {
        "target": target,
        "ema_mean": mean,
        "ema_std": std,
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
