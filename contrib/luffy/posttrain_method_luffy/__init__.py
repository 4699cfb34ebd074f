"""LUFFY: each group holds a demonstration beside the policy's own completions, and rare steps of it count most.

Paper: Yan et al. 2025, "Learning to Reason under Off-Policy Guidance", arXiv:2504.14945.

Loss in words: of each group all but one are sampled, and one is the row's own completion, scored like the others. What
a completion is worth is its reward minus the mean of the whole group. A sampled token's ratio to the policy before the
update is multiplied by this, without a clip. A demonstrated token has no such ratio; its probability p is reshaped, so
that tokens which the policy hardly knows have the larger gradients:

    loss = mean over all tokens of  -A p / p_old (sampled),   -A p / (p + gamma_shape) (demonstrated)

Differs from the paper: nothing. The rewards have to judge demonstrations as well as samples.

Metrics:
- ratio: probability of sampled tokens relative to the sampling policy. 1 in the first update of a batch.
- demonstration_probability: mean probability of demonstrated tokens. Rises as far as they are better than samples.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    gamma_shape: float = 0.1
    """Probability at which a demonstrated token has half its weight (the paper)."""


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """Samples, and the row's own completion."""
    return [[SampleRequest(max(group_size - 1, 1)), SampleRequest(1, source="data")] for _ in prompts]


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far each reward lies above its group's mean: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the ratio of samples, or times the reshaped probability of demonstrations."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    shown = torch.tensor([who == "data" for who in batch.source], device=ratio.device)[:, None]  # (B, 1)
    probability = view.logps.exp()  # (B, T)
    weight = torch.where(shown, probability / (probability + config.gamma_shape), ratio)
    loss = -weight * advantages  # (B, T)
    metrics = {
        "ratio": ratio.detach().where(~shown, torch.nan),
        "demonstration_probability": probability.detach().where(shown, torch.nan),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
