"""Trajectory balance: the policy becomes the reference reweighted by exp(reward / beta), by regression.

Paper: Bartoldson et al. 2025, "Trajectory Balance with Asynchrony: Decoupling Exploration and Learning for Fast,
Scalable LLM Post-Training", arXiv:2503.18929, section 3.

Loss in words: the policy that maximises reward minus beta times the divergence from the reference satisfies, for every
completion of a prompt, log Z + log p - log p_ref = R / beta with one log Z. The squared violation is the loss, whoever
sampled the completion. log Z is estimated from the group's K completions (VarGrad) and has no gradient:

    log Z = mean over the group of [log p_ref + R / beta - log p]
    loss = (log Z + log p - log p_ref - R / beta)^2,   log-probabilities of whole completions, averaged over completions

Differs from the paper: completions are the policy's own of this step; its searchers and replay buffer are not here.
The paper lowers beta in the course of training, here it is constant. A group is what of it lies in one optimiser step.

Metrics:
- violation: mean absolute bracket. Falls.
- log_z: mean of log Z. Rises with the rewards.
- kl: log-ratio of a completion to the reference, summed over its tokens. From 0 upwards.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Temperature of the rewards: less follows them more closely (the paper tunes it for each task, 0.1 and below)."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0")


@hookimpl
def posttrain_advantages(rewards):
    """The rewards: (B,)."""
    return rewards


@hookimpl
def posttrain_annotate(examples, models, config):
    """log Z of each completion's prompt: (B,)."""
    sequences = [one.sequences["completion"][0] for one in examples]
    own, start = ([values.sum() for values in models.logps(sequences, name)] for name in ("policy", "reference"))
    log_ratio = torch.stack(start) - torch.stack(own)  # (B,)
    rewards = log_ratio.new_tensor([one.columns["advantages"] for one in examples])
    group = torch.tensor([one.columns["group"] for one in examples])
    return {"log_z": tensors.group_mean(log_ratio.cpu() + rewards.cpu() / config.beta, group)}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared violation of the balance, one value a completion."""
    view = policy.completion
    log_ratio = view.sum - reference.completion.sum  # (B,)
    log_z = batch.log_z.to(log_ratio)
    violation = log_z + log_ratio - batch.advantages.nan_to_num(0.0) / config.beta
    return violation.square(), {
        "violation": violation.detach().abs(),
        "log_z": log_z,
        "kl": log_ratio.detach(),
    }
