"""RLCR: the model says how sure it is, and is paid for being right about that too.

Paper: Damani et al. 2025, "Beyond Binary Rewards: Training LMs to Reason About Their Uncertainty", arXiv:2507.16806,
section 3.

Loss in words: the prompt asks for an answer and for the confidence in it, a number from 0 to 1 in tags. From the
reward R, 1 for right and 0 for wrong, the squared error of the confidence q is taken:

    R' = R - (q - R)^2

No strategy earns more than to answer as well as possible and to say the true probability of being right. R' is
compared within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens of the
step. A completion without a readable number counts as q = 0 where it is right and as q = 1 where it is wrong, the
worst that can be said.

Differs from the paper: the format reward, which pays for the tags themselves, is a reward of its own (--reward
format). The clipped loss is averaged over tokens.

Metrics:
- shaped_rewards: mean of R'. Above the reward less 1/4 once the confidence says anything.
- confidence: mean of q. Comes near the mean reward.
- brier: mean of (q - R)^2. Falls; 0.25 is what "one half" always gets.
- readable: share of completions with a number. Near 1; otherwise ask for the tags in the prompt.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

import re
from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    confidence_pattern: str = r"<confidence>\s*(.*?)\s*</confidence>"
    """Regular expression whose one group is the confidence; the last match counts."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""

    def __post_init__(self) -> None:
        if re.compile(self.confidence_pattern).groups != 1:
            raise ValueError(f"confidence_pattern is {self.confidence_pattern!r}, expected one group in parentheses")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The rewards less the squared error of the confidence, compared within the group: (B,)."""
    said = [_confidence(text, config.confidence_pattern) for text in rollouts.completions]
    worst = (1 - rewards).nan_to_num(0.0).tolist()
    stated = rewards.new_tensor([bad if one is None else one for one, bad in zip(said, worst, strict=True)])  # (B,)
    brier = (stated - rewards).square()
    shaped = rewards - brier
    return {
        "advantages": tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon),
        "shaped_rewards": shaped,
        "confidence": stated,
        "brier": brier,
        "readable": rewards.new_tensor([float(one is not None) for one in said]),
    }


def _confidence(text: str, pattern: str) -> float | None:
    """The last number from 0 to 1 that the pattern finds; None where there is none."""
    for found in reversed(re.findall(pattern, text, re.DOTALL)):
        try:
            value = float(found)
        except ValueError:
            continue
        if 0 <= value <= 1:
            return value
    return None


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {
        **{name: batch.columns[name] for name in ("shaped_rewards", "confidence", "brier", "readable")},
        "advantage_size": batch.advantages.abs(),
    }
    return PerToken(loss, view.mask), metrics
