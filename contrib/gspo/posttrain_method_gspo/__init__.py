"""Group sequence policy optimisation: the reward is given to a whole completion, so the ratio is that of the whole.

Paper: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv:2507.18071, equations 5 to 7.

Loss in words: what a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. The completion's probability relative to the policy that sampled it, as a geometric mean over its L tokens,
is multiplied by this advantage and clipped. All tokens of a completion thus have the same weight, and a completion is
clipped as a whole:

    s = exp(1/L sum of log-ratios)
    loss = mean over completions of  -min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A)

A mean over tokens stays close to 1, hence bounds a thousand times narrower than those of a token's ratio.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, and a group of equal rewards
has advantages of exactly 0. The paper leaves a divergence from a reference out of its equations; ``beta`` adds one (k3,
the mean over a completion's tokens). The paper cuts each batch of rollouts into four (minibatches-per-rollout 4); with
the usual one update a batch no ratio leaves 1 and nothing is clipped.

Metrics:
- ratio: s of a completion. 1 in the first update of a batch, afterwards within 0.001 of it.
- clip_low, clip_high: share of completions that are clipped below and above. About 0.15 together is what the paper saw;
  0 after the first update of a batch means that the bounds are too wide.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
- zero_advantage: share of completions that teach nothing, mostly of groups with equal rewards. Above 0.8 the task is
  too easy or too hard.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon_low: float = 3e-4
    """How far the completion's ratio may fall below 1 before it is clipped (the paper, section 5.1)."""
    epsilon_high: float = 4e-4
    """How far it may rise above 1 (the paper, section 5.1)."""
    beta: float = 0.0
    """Weight of the divergence from the reference (the paper's equations have none). 0 needs no reference."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviation (TRL; the paper has nothing)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient on whole completions, one value each."""
    view = policy.completion
    advantages = batch.advantages  # (B,)
    ratio = tensors.importance_ratio(view.mean_of(view.logps - batch.old_logps))  # (B,)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon_low, config.epsilon_high)  # (B,)
    size = advantages.abs()
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": size,
        "zero_advantage": (size == 0).to(size.dtype),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss = loss + config.beta * view.mean_of(kl)
        metrics["kl"] = PerToken(kl.detach(), view.mask)
    return loss, metrics
