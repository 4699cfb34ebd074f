"""Simple policy optimisation: a quadratic penalty on each token's ratio in the place of the clip.

Paper: Xie et al. 2024, "Simple Policy Optimization", arXiv:2401.16025, equation 10; on language models CFPO.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. A token's ratio to the policy that sampled it is multiplied by this, less a parabola around a ratio of 1 that
is scaled by the advantage's size. The best ratio is then exactly 1 + epsilon or 1 - epsilon, and a token that has gone
beyond it is pulled back, while a clip would let it drift:

    loss = -(sum over all tokens of  ratio A - |A| / (2 epsilon) (ratio - 1)^2) / number of tokens

Differs from the paper: the advantages are GRPO's. The standard deviation is the sample's plus ``advantage_epsilon``, as
in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- penalty: what the parabola costs. 0 in the first update of a batch, then small beside advantage_size.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the ratio, less a parabola."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    penalty = advantages.abs() / (2 * config.epsilon) * (ratio - 1).square()  # (B, T)
    loss = penalty - ratio * advantages  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "penalty": penalty.detach(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
