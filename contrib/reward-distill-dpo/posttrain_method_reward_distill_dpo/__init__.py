"""Reward model distillation: the implied margin of a pair is regressed onto the difference of two explicit rewards.

Paper: Fisch et al. 2024, "Robust Preference Optimization through Reward Model Distillation", arXiv:2405.19316.

Loss: the squared difference between DPO's margin, beta times the difference of log-ratios, and ``chosen_score`` less
``rejected_score``, the rewards that a model gives the two answers. It has its minimum at a finite margin, and needs no
preference: any two answers do.

Differs from the paper: the pessimistic variant, the smallest square over an ensemble of reward models plus a
divergence penalty, is left out: there is one score an answer.

Metrics:
- target: difference of the scores, which the margin nears.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of reward model distillation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared distance of the margin from the difference of scores."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    target = (batch.chosen_score - batch.rejected_score).to(margin)  # (B,)
    loss = (margin - target) ** 2  # (B,)
    return loss, {
        "target": target,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
