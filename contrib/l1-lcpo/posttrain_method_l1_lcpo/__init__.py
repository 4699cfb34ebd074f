"""LCPO: the reward asks for a right answer of the length that the prompt asks for.

Paper: Aggarwal and Welleck 2025, "L1: Controlling How Long A Reasoning Model Thinks With Reinforcement Learning",
arXiv:2503.04697, equations 1 and 2.

Loss in words: each prompt says how long to think ("Think for 512 tokens."), and the row's column n_gold holds that
number. The reward R of the answer is combined with its length L, exactly or as an upper bound:

    exact:   R' = R - alpha * |n_gold - L|
    max:     R' = R * clip(alpha * (n_gold - L) + delta, 0, 1)

R' is compared within the group, in standard deviations, and has the clipped policy gradient, averaged over all tokens
of the step.

Differs from the paper: nothing in the reward; the sentence in the prompt is the data's affair. Rows without n_gold
have the option's value. The paper trains "max" from a model that was trained with "exact".

Metrics:
- shaped_rewards: mean of R'.
- length_error: mean distance of the length from what was asked for, in tokens. Falls.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    mode: Literal["exact", "max"] = "exact"
    """Whether the length is to be met or not to be exceeded."""
    alpha: float = 0.0003
    """Penalty of a token (the paper)."""
    delta: float = 0.5
    """Of "max": the factor of an answer that is exactly as long as allowed (the paper)."""
    n_gold: int | None = None
    """Length for rows without a column n_gold, in tokens; None is max-new-tokens."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The rewards with the length that was asked for, compared within the group: (B,)."""
    given = rollouts.columns.get("n_gold", [None] * len(rewards))
    asked = rewards.new_tensor([config.n_gold if one is None else float(one) for one in given])  # (B,)
    over = rollouts.lengths.to(rewards.dtype) - asked
    if config.mode == "exact":
        shaped = rewards - config.alpha * over.abs()
    else:
        shaped = rewards * (config.delta - config.alpha * over).clamp(0, 1)
    advantages = tensors.group_advantages(shaped, rollouts.group, config.advantage_epsilon)
    return {"advantages": advantages, "shaped_rewards": shaped, "length_error": over.abs()}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "length_error"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
