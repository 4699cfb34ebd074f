"""CPPO: completions that would hardly move the policy are pruned before anything is computed on them.

Paper: Lin et al. 2025, "CPPO: Accelerating the Training of Group Relative Policy Optimization-Based Reasoning Models",
arXiv:2503.22342, section 3.

Loss in words: advantages are those of GRPO over the whole group, rewards less their mean in standard deviations. Of
each group of G completions only the floor(G (1 - pruning_rate)) with the largest absolute advantage are learnt from,
with the clipped policy gradient, averaged over a completion's
tokens, then over those kept.

Differs from the paper: the slots that pruning frees are not filled with further prompts: raise --batch-size by hand.
There is no divergence from a reference in the loss; the authors' code has one of weight 0.04.

Metrics:
- rollouts_learnt: share of the completions that are learnt from, 1 - pruning_rate.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

from dataclasses import dataclass, replace

from posttrain import Selection, hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    pruning_rate: float = 0.5
    """Share of each group that is pruned (the paper: 0.5 to 0.875)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""

    def __post_init__(self) -> None:
        if not 0 <= self.pruning_rate < 1:
            raise ValueError(f"pruning_rate is {self.pruning_rate}, expected a share from 0 to below 1")


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """The completions with the largest advantages of each group, which they keep."""
    advantages = tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)
    kept = []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0]  # (n,)
        count = max(1, int(len(rows) * (1 - config.pruning_rate) + 1e-9))
        kept += rows[advantages[rows].abs().argsort(descending=True, stable=True)[:count]].tolist()
    return Selection([_with_advantage(rollouts.items[row], float(advantages[row])) for row in sorted(kept)])


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """What each completion was worth in its whole group: (B,)."""
    found = tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)
    known = rollouts.columns.get("whole_group_advantage", [None] * len(rewards))
    pairs = zip(known, found.tolist(), strict=True)
    return rewards.new_tensor([own if before is None else before for before, own in pairs])


def _with_advantage(item, advantage: float):
    return replace(item, columns=item.columns | {"whole_group_advantage": advantage})


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient, averaged over the tokens of a completion."""
    loss, metrics = policy_loss(batch, policy, config, aggregation="sequence")
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
