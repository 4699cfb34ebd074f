"""GVPO: within a group, how much more likely a completion has become shall follow how much better it is.

Paper: Zhang et al. 2025, "GVPO: Group Variance Policy Optimization for Large Language Model Post-Training",
arXiv:2504.19599, section 3.

Loss in words: the best policy near the one that sampled has log-ratios r = log p - log p_old of whole completions that
are R / beta up to a constant of the prompt. Less their means over the group the constant is gone, and the squared
difference has one minimum, that policy, whoever sampled:

    loss = 1 / (2 beta) * [beta * (r - mean of the group) - (R - mean of the group)]^2,   averaged over completions

The gradient weights of a group sum to 0, so the mean of r may be held constant without a change.

Differs from the paper: log p_old is that of the policy before this batch of rollouts. A group is what of it lies in
one optimiser step.

Metrics:
- mismatch: mean absolute bracket. Falls within the updates of a batch.
- log_ratio: mean r. 0 in the first update of a batch.
- advantage_size: mean absolute advantage. 0 means that the rewards within each group are equal.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull to the policy that sampled (the paper; 0.05 to 0.2 do as well)."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0")


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """Reward less the mean of the group: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)  # NaN: it has no reward


@hookimpl
def posttrain_annotate(examples, models):
    """Mean log-ratio of each completion's group: (B,)."""
    sequences = [one.sequences["completion"][0] for one in examples]
    group = torch.tensor([one.columns["group"] for one in examples])
    if not all("old_logps" in one.per_token for one in sequences):  # the policy still is the one that sampled
        return {"group_log_ratio": torch.zeros(len(group))}
    now = [values.sum().cpu() for values in models.logps(sequences, "policy")]
    old = [one.per_token["old_logps"].sum().cpu() for one in sequences]
    return {"group_log_ratio": tensors.group_mean(torch.stack(now) - torch.stack(old), group)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Squared mismatch, one value a completion."""
    view = policy.completion
    log_ratio = view.sum_of(view.logps - batch.old_logps)  # (B,)
    mismatch = config.beta * (log_ratio - batch.group_log_ratio.to(log_ratio)) - batch.advantages
    return mismatch.square() / (2 * config.beta), {
        "mismatch": mismatch.detach().abs(),
        "log_ratio": log_ratio.detach(),
        "advantage_size": batch.advantages.abs(),
    }
