"""StarPO-S: only the prompts the policy is least certain about are learnt from.

Paper: Wang et al. 2025, "RAGEN: Understanding Self-Evolution in LLM Agents via Multi-Turn Reinforcement Learning",
arXiv:2504.20073, section 4.2.

Loss in words: prompts whose completions all fare alike bring noise. Of the prompts of a step the keep_fraction with
the largest standard deviation of their rewards is kept. Rewards less their group's mean, in standard deviations, are
the advantages; the ratio is clipped further up than down, there is no divergence from a reference, and the mean is
over all tokens that are kept:

    loss = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)

Differs from the paper: the paper's completions are episodes in an environment, and its base is PPO with a value
network or GRPO; this is the latter.

Metrics:
- rollouts_learnt: share of the completions that are learnt from, keep_fraction.
- reward_spread: mean standard deviation of the kept groups. Falling to 0: the policy has settled, other tasks are due.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass

from posttrain import Selection, hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    keep_fraction: float = 0.25
    """Share of the prompts that is kept (the paper)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction is {self.keep_fraction}, expected a share above 0 and up to 1")


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """The groups that vary most."""
    spread = tensors.group_std(rewards, rollouts.group)  # (B,)
    groups = dict(zip(rollouts.group.tolist(), spread.tolist(), strict=True))
    count = max(1, round(len(groups) * config.keep_fraction))
    kept = set(sorted(groups, key=lambda group: -round(groups[group], 9))[:count])  # stable: of equals the earlier ones
    return Selection([one for one, g in zip(rollouts.items, rollouts.group.tolist(), strict=True) if g in kept])


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The kept rewards, compared within their groups: (B,)."""
    spread = tensors.group_std(rewards, rollouts.group)
    return {
        "advantages": tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon),
        "reward_spread": spread,
    }


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("reward_spread",))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
