"""REINFORCE leave-one-out: policy gradient with the other completions of the same prompt as the baseline.

Paper: Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
in LLMs", arXiv:2402.14740; the estimator is that of Kool et al. 2019.

Loss: the reward of a completion is lowered by beta times its log-ratio to the reference (an estimate of the
divergence, without gradient). What it is worth is that reward minus the mean of the *other* completions of its prompt.
The loss is the clipped product of this advantage and the probability of the whole completion relative to the policy
that sampled it, so that a batch of rollouts can be used more than once.

Differs from the paper: the paper takes one gradient step per batch with the plain REINFORCE loss
(``importance_level="none"``); the default here has the same gradient at the first step and, as in TRL, a clipped
sequence ratio afterwards. A completion that is alone in its group has no baseline and teaches nothing.

Metrics:
- kl: log-ratio of a completion to the reference, summed over its tokens (only with beta). Starts at 0; rises slowly.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of completions (tokens at level "token") that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. 0 means that the rewards within each group are equal: nothing to learn.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of REINFORCE leave-one-out."""

    beta: float = 0.05
    """Weight of the divergence from the reference in the reward (TRL; the paper uses 0.03). 0 needs no reference."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    importance_level: Literal["sequence", "token", "none"] = "sequence"
    """Ratio of the whole completion, of each token, or the paper's plain log-probability without ratio and clip."""
    normalize_advantages: bool = False
    """Whiten the advantages over all completions of the step (TRL's option); the paper does not."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Reward, less its divergence penalty, less the mean of the others in the group: (B,)."""
    if config.beta:
        log_ratio = tensors.kl_k1(rollouts.old_logps, rollouts.reference_logps)  # (B, T)
        rewards = rewards - config.beta * tensors.masked_sum(log_ratio, rollouts.mask)
    advantages = rewards - tensors.leave_one_out_mean(rewards, rollouts.group)
    if config.normalize_advantages:
        everyone = torch.zeros_like(rollouts.group)
        centred = advantages - tensors.group_mean(advantages, everyone)
        advantages = centred / (tensors.group_std(advantages, everyone) + 1e-4)
    return advantages.nan_to_num(0.0)  # a completion without a reward teaches nothing


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient on whole completions (or tokens)."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    size = view.mean_of(advantages.abs())  # (B,)
    log_ratio = view.logps - batch.old_logps
    if config.importance_level == "sequence":
        log_ratio, advantages = view.sum_of(log_ratio), view.mean_of(advantages)  # (B,)
    ratio = tensors.importance_ratio(log_ratio)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
    if config.importance_level == "none":
        loss = -advantages * view.logps
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    if loss.dim() == 2:
        loss = view.sum_of(loss)  # summed over a completion, as the probability of a sequence is a product
        metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics["advantage_size"] = size
    if config.beta:
        metrics["kl"] = view.sum_of(tensors.kl_k1(view.logps.detach(), reference.completion.logps))
    return loss, metrics
