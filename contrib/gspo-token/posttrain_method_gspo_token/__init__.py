"""GSPO-token: the ratio of a whole completion as in GSPO, with an advantage for each token.

Paper: Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv:2507.18071, equations 13 and 14.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. A token's ratio has the value of its completion's (the geometric mean s of the ratios of all its tokens) and
the gradient of its own log-probability, so that tokens may have advantages of their own:

    ratio = constant(s) exp(log p - constant(log p)),   loss = mean of  -min(ratio A, clip(ratio, 1 - low, 1 + high) A)

The mean is over a completion's tokens, then over completions. Where all tokens of a completion have one advantage, as
here, value and gradient are those of gspo.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The
advantages are the same for all tokens of a completion; a method that gives them apart returns ``(B, T)``.

Metrics:
- ratio: that of a completion. 1 in the first update of a batch, afterwards within 0.001 of it.
- clip_low, clip_high: share of tokens in clipped completions, below and above. About 0.15 together is what the paper
  saw.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
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
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient with the completion's ratio, averaged over its tokens."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    whole = tensors.importance_ratio(view.mean_of(view.logps - batch.old_logps)).detach()[:, None]  # (B, 1)
    ratio = whole * (view.logps - view.logps.detach()).exp()  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon_low, config.epsilon_high)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return view.mean_of(loss), {name: PerToken(values, view.mask) for name, values in metrics.items()}
