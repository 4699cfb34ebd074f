"""Soft adaptive policy optimisation: instead of a clip, a smooth gate that closes as a token's ratio leaves 1.

Paper: Gao et al. 2025, "Soft Adaptive Policy Optimization", arXiv:2511.20347.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. A token's ratio to the policy that sampled it goes through a sigmoid that has slope 1 at a ratio of 1 and
fades on either side, sooner for tokens of bad completions, whose gradients are the less stable ones. The mean is over a
completion's tokens, then over completions:

    loss = mean of  -A (4 / tau) sigmoid(tau (ratio - 1)),   tau = tau_pos where A > 0, tau_neg otherwise

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- gate_slope: how open the gate is: 1 at a ratio of 1, towards 0 far from it. Mostly above 0.9.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    tau_pos: float = 1.0
    """How fast the gate closes for completions above their group's mean (the paper)."""
    tau_neg: float = 1.05
    """How fast it closes for the others (the paper)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the gated ratio, averaged over a completion's tokens."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    steepness = torch.where(advantages > 0, config.tau_pos, config.tau_neg).to(ratio.dtype)  # (B, T)
    gate = torch.sigmoid(steepness * (ratio - 1))  # (B, T)
    loss = -advantages * 4 / steepness * gate  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "gate_slope": (4 * gate * (1 - gate)).detach(),
        "advantage_size": advantages.abs(),
    }
    return view.mean_of(loss), {name: PerToken(values, view.mask) for name, values in metrics.items()}
