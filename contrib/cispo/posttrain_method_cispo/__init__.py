"""CISPO: every token keeps its gradient; it is the weight of the token, its probability ratio, that is clipped.

Paper: MiniMax 2025, "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", arXiv:2506.13585,
section 3.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. PPO drops a token whose ratio to the policy that sampled it has left the allowed range, and those are often
the rare words at which reasoning turns. Here the ratio is clipped and held constant, and multiplies the advantage and
the token's log-probability, averaged over all tokens of the step:

    loss = -(sum over all tokens of  constant(clip(ratio, ratio_floor, ratio_cap)) A log p) / number of tokens

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The paper
tunes its cap and names no number; ``ratio_cap`` is ScaleRL's, an absolute bound as in TRL (verl and slime state it as a
distance from 1). There is no lower bound, as in the paper.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- capped: share of tokens whose weight is cut. Near 0; above 0.1 the policy has moved far within one batch.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    ratio_cap: float = 5.0
    """Largest weight of a token (ScaleRL, arXiv:2510.13786; TRL's epsilon_high)."""
    ratio_floor: float = 0.0
    """Smallest weight of a token (the paper: none)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Log-probabilities weighted by the advantage and a clipped ratio."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    weight = ratio.detach().clamp(config.ratio_floor, config.ratio_cap)  # (B, T)
    loss = -weight * advantages * view.logps  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "capped": (ratio > config.ratio_cap).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
