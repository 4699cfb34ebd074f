"""Length-unbiased sequence policy optimisation: GSPO with each completion weighted by its length.

Paper: 2026, "Length-Unbiased Sequence Policy Optimization: Revealing and Controlling Response Length Variation in
RLVR", arXiv:2602.05261.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. The completion's ratio, a geometric mean over its L tokens, is multiplied by this and clipped as a whole, as
in gspo. There a token of a long completion counts for less than one of a short completion, and answers get shorter;
here the loss is multiplied by the length:

    s = exp(1/L sum of log-ratios)
    loss = mean over completions of  -L min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A)

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The loss
grows with the length of answers, and max-grad-norm bites sooner.

Metrics:
- ratio: that of a completion. 1 in the first update of a batch, afterwards within 0.005 of it.
- clip_low, clip_high: share of completions that are clipped below and above. 0 after the first update of a batch means
  that the bounds are too wide.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    epsilon_low: float = 2e-3
    """How far the completion's ratio may fall below 1 before it is clipped (TRL)."""
    epsilon_high: float = 2.5e-3
    """How far it may rise above 1 (TRL)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient on whole completions, each times its length."""
    view = policy.completion
    advantages = batch.advantages  # (B,)
    ratio = tensors.importance_ratio(view.mean_of(view.logps - batch.old_logps))  # (B,)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon_low, config.epsilon_high)  # (B,)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon_low) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon_high) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    return view.lengths * loss, metrics
