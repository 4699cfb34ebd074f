"""Entropy-based advantage shaping: tokens at which the policy was uncertain get a bonus on their advantage.

Paper: Cheng et al. 2025, "Reasoning with Exploration: An Entropy Perspective", arXiv:2506.14758.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Tokens of high entropy are those at which reasoning turns, so each token's advantage grows by alpha times the
entropy H of the policy before the update, held constant and never more than a part of the advantage, so that a bad
token never becomes a good one:

    A_t = A + min(alpha H_t, |A| / kappa)

The clipped policy gradient with it is averaged over all tokens of the step, clipped further up than down, as in DAPO.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Where A
is 0 the bonus is 0, since it is a part of it.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- bonus: mean of what entropy adds to an advantage. Falls with the entropy.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    alpha: float = 0.4
    """Weight of the entropy (the paper: 0.4 with GRPO, 0.1 with PPO)."""
    kappa: float = 2.0
    """Part of the advantage that the bonus may be, above 1 (the paper)."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""

    def __post_init__(self) -> None:
        if self.kappa <= 1:
            raise ValueError(f"kappa is {self.kappa}, expected a number above 1")


@hookimpl
def posttrain_advantages(rollouts, advantages, config):
    """The advantages and the bonus of each token: (B, T)."""
    worth = advantages.reshape(len(advantages), -1)  # (B, 1) or (B, T)
    bonus = (config.alpha * rollouts.old("entropy").clamp(min=0)).minimum(worth.abs() / config.kappa)  # (B, T)
    return {"advantages": torch.where(rollouts.mask, worth + bonus, 0.0).to(advantages.dtype), "bonus": bonus}


@hookimpl
def posttrain_loss(batch, policy, inner):
    """The loss as it is; the bonus is logged."""
    terms, metrics = inner
    return terms, {**metrics, "bonus": PerToken(batch.bonus, policy.completion.mask)}
