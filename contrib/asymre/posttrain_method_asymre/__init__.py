"""Asymmetric REINFORCE: off-policy samples are learnt without ratios; a low baseline keeps that from going wrong.

Paper: Arnal et al. 2025, "Asymmetric REINFORCE for off-Policy Reinforcement Learning", arXiv:2506.20520, section 3.

Loss in words: lowering what an older policy found bad can ruin a policy that would not say it any more; raising what
it found good cannot. So the baseline is the mean reward of the group and a little less, and good samples weigh more:

    A = R - (mean of the group + baseline_shift)
    loss = -A log p(token),   averaged over all tokens of the step

There is neither a ratio nor clipping, so nothing has to be known about who sampled.

Differs from the paper: the mean over tokens is that of Trinity-RFT.

Metrics:
- entropy: of the next-token distribution in nats. Falls; below 0.01 the policy has stopped exploring: lower the shift.
- nll: negative log-probability of a token in nats. Falls.
- advantage: mean advantage, which is minus the shift.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    baseline_shift: float = -0.1
    """What is added to the mean reward of a group (the paper: -0.1). Above 0 training collapses."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Reward less the shifted mean of the group: (B,)."""
    baseline = tensors.group_mean(rewards, rollouts.group) + config.baseline_shift
    return (rewards - baseline).nan_to_num(0.0)  # NaN: it has no reward


@hookimpl
def posttrain_loss(batch, policy):
    """Policy gradient of each token."""
    view = policy.completion
    metrics = {"nll": PerToken(-view.logps.detach(), view.mask)}
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1) or (B, T)
    return PerToken(-advantages * view.logps, view.mask), metrics | {"advantage": batch.advantages}
