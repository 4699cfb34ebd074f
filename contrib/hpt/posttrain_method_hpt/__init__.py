"""Hybrid post-training: where the policy succeeds often enough it learns from itself, elsewhere from a demonstration.

Paper: Lv et al. 2025, "Towards a Unified View of Large Language Model Post-Training", arXiv:2509.04419.

Loss in words: of each prompt, completions are sampled, and the row's own completion is at hand. Where the share of
correct samples exceeds the gate, the samples are learnt from: rewards less their group's mean, in a clipped policy
gradient averaged over the tokens of these samples. Where it does not, they are left out and the demonstration is
imitated instead, its negative log-likelihood averaged over the tokens of these demonstrations:

    loss = mean over tokens of solved prompts' samples of  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)
           + sft_coef * mean over tokens of the other prompts' demonstrations of  -log p

Differs from the paper: what is left out still costs a forward pass.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- gated: share of rows whose prompt is learnt from its demonstration. Falls as the policy learns.
- advantage_size: mean absolute advantage, in units of the reward. 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    gate: float = 0.0
    """Share of correct samples up to which the demonstration is learnt from (the paper: 0 for Qwen, 0.25 for
    Llama)."""
    sft_coef: float = 1.0
    """Weight of the demonstrations (the paper: 1; 0.3 for a 1.5B model)."""
    correct_above: float = 0.0
    """A completion with a larger reward counts as correct: 0 fits rewards of 0 and 1, and of -1 and 1."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """Samples, and the row's own completion."""
    return [[SampleRequest(group_size), SampleRequest(1, source="data")] for _ in prompts]


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Rewards less their group's mean where the prompt is solved often enough, and where it is not: (B,) each."""
    sampled = torch.tensor([who != "data" for who in rollouts.source])
    compared = rewards.where(sampled, torch.nan)
    right = (compared > config.correct_above).to(rewards.dtype).where(~compared.isnan(), torch.nan)
    shown = tensors.group_mean((~sampled).to(rewards.dtype), rollouts.group) > 0  # without one there is no choice
    gated = shown & ~(tensors.group_mean(right, rollouts.group) > config.gate)  # (B,)
    advantages = tensors.group_advantages(compared, rollouts.group)
    return {"advantages": advantages.where(~gated, 0.0), "gated": gated.to(rewards.dtype)}


@hookimpl
def posttrain_annotate(examples):
    """Which tokens are learnt from by the policy gradient, and which are imitated: lists of (t,)."""
    found: dict[str, list[torch.Tensor]] = {"explored": [], "imitated": []}
    for example in examples:
        shown, gated = example.columns["source"] == "data", bool(example.columns["gated"])
        count = example.sequences["completion"][0].count
        found["explored"].append(torch.full((count,), not shown and not gated))
        found["imitated"].append(torch.full((count,), shown and gated))
    return found


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of some samples and likelihood of the other prompts' demonstrations."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    terms = {
        "policy": PerToken(loss, batch.explored),
        "imitation": PerToken(-config.sft_coef * view.logps, batch.imitated),
    }
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, batch.explored) for name, values in metrics.items()}
    return terms, metrics | {"gated": batch.gated}
