"""Intuitor: the model's own certainty is the reward; nobody says what is right.

Paper: Zhao et al. 2025, "Learning to Reason without External Rewards", arXiv:2505.19590, section 3.

Loss in words: a completion's reward is its self-certainty, the mean over its tokens of the divergence of the model's
next-token distribution p from the uniform one U:

    R = mean over tokens of KL(U || p) = mean of [logsumexp(z) - mean(z)] - log V,   z the V logits

It is taken from the policy that sampled, compared within the group, in standard deviations, and has the clipped policy
gradient. beta times an estimate (k3) of the divergence from the reference is added; the mean is over a completion's
tokens, then over completions. Verifiers, where they are named, are only logged.

Differs from the paper: nothing known. Certainty can be hacked: watch an evaluation with real rewards (--eval-data,
--reward).

Metrics:
- self_certainty: mean reward in nats. Rises.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

import math
from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.005
    """Weight of the divergence from the reference (the paper). 0 needs no reference."""
    aggregation: Literal["sequence", "token"] = "sequence"
    """Average over a completion's tokens, then completions (GRPO), or over all tokens of the step."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_token_statistics(logits):
    """How far each distribution is from the uniform one, KL(U || p), and its entropy for the log."""
    certainty = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])  # (n,)
    return {"self_certainty": certainty.detach()}


@hookimpl
def posttrain_advantages(rollouts, config):
    """Self-certainty of each completion, compared within the group: (B,)."""
    certainty = tensors.masked_mean(rollouts.old("self_certainty"), rollouts.mask)  # (B,)
    return {
        "advantages": tensors.group_advantages(certainty, rollouts.group, config.advantage_epsilon),
        "self_certainty": certainty,
    }


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient of each token, and the divergence from the reference."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss, metrics["kl"] = loss + config.beta * kl, kl.detach()
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {"self_certainty": batch.self_certainty, "advantage_size": batch.advantages.abs()}
    return (PerToken(loss, view.mask) if config.aggregation == "token" else view.mean_of(loss)), metrics
