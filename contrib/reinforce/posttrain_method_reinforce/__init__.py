"""REINFORCE: log-probabilities weighted by how far the reward exceeds the mean of the rewards seen so far.

Papers: Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning"; on
language models Ahmadian et al. 2024, arXiv:2402.14740.

Loss in words: a completion's reward, less beta times its log-ratio to the reference, is compared with the mean of all
such rewards since the run began, those of this step included. The difference multiplies the sum of the completion's
log-probabilities; there is no ratio, no clip and no division by the length. Completions are averaged:

    R' = R - beta sum over tokens of (log p_old - log p_reference),   A = R' - mean of all R' so far
    loss = mean over completions of  -A sum over tokens of log p

Differs from the paper: nothing. With baseline "batch_mean" only the rewards of the step are averaged. Where a batch of
completions serves several updates, reinforce-plus-plus has the ratio and the clip that this method lacks.

Metrics:
- baseline: mean reward so far, less the divergence. Follows the reward, the later the more slowly.
- kl: log-ratio of a token to the reference (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    baseline: Literal["running_mean", "batch_mean"] = "running_mean"
    """Mean of all rewards so far (arXiv:2402.14740 section 3), or of the step's."""
    beta: float = 0.0
    """Weight of the divergence from the reference in the reward (arXiv:2402.14740: 0.03 to 0.1). 0 needs no
    reference."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """How far each reward, less the divergence, lies above the mean so far: (B,)."""
    if config.beta:
        log_ratio = tensors.kl_k1(rollouts.old_logps, rollouts.reference_logps)  # (B, T)
        rewards = rewards - config.beta * tensors.masked_sum(log_ratio, rollouts.mask)
    known = rewards[~rewards.isnan()].double()
    if config.baseline == "batch_mean":
        state = {}
    state["total"] = state.get("total", 0.0) + float(known.sum())
    state["count"] = state.get("count", 0) + len(known)
    baseline = torch.full_like(rewards, state["total"] / max(state["count"], 1))  # (B,)
    return {"advantages": (rewards - baseline).nan_to_num(0.0), "baseline": baseline}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Log-probabilities of a completion, summed and weighted by the advantage."""
    view = policy.completion
    metrics = {"baseline": batch.baseline}
    metrics["advantage_size"] = batch.advantages.abs()
    if config.beta:
        kl = tensors.kl_k1(view.logps.detach(), reference.completion.logps)  # (B, T)
        metrics["kl"] = PerToken(kl, view.mask)
    return -batch.advantages * view.sum, metrics
