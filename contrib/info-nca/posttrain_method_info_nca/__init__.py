"""InfoNCA: the implied rewards of several answers are fitted to explicit ones by a cross-entropy.

Paper: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv:2402.05369.

Loss: the target of a prompt is the softmax of its answers' ``scores`` over alpha; the policy's own distribution over
them is the softmax of beta times the log-ratios of policy to reference. The loss is the cross-entropy of the two. With
two answers and a certain target it is DPO's.

Differs from the paper: nothing. Scores are taken as they are: alpha is in their unit.

Metrics:
- reward_best, reward_worst: beta times the log-ratio, policy over reference, of the first and the last answer. Start
  at 0.
- rank_accuracy: share of a prompt's pairs of answers whose rewards are in the order of the list. Rises from 0.5 or 0.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of InfoNCA."""

    beta: float = 0.01
    """Strength of the pull towards the reference."""
    alpha: float = 1.0
    """Temperature of the scores, above 0: towards 0 only the best answer counts (arXiv:2402.05369: 0.01 to 1)."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, expected a number above 0: scores are divided by it.")


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Cross-entropy of implied rewards to scores."""
    view, other = policy.completion, reference.completion
    rewards = view.listed(config.beta * (view.sum - other.sum))  # (B, K)
    present = view.present
    scores = torch.where(present, batch.scores.to(rewards), -torch.inf)  # (B, K)
    log_share = rewards - torch.where(present, rewards, -torch.inf).logsumexp(1, keepdim=True)
    loss = -((scores / config.alpha).softmax(1) * log_share).sum(1)  # (B,)
    return loss, {
        "reward_best": rewards[:, 0].detach(),
        "reward_worst": rewards.gather(1, view.counts[:, None] - 1)[:, 0].detach(),
        "rank_accuracy": _rank_accuracy(rewards.detach(), present),
        "logp_best": view.listed(view.sum)[:, 0].detach(),
    }


def _rank_accuracy(rewards, present):
    """Share of the pairs of a list ``(B, K)`` that are in its order; NaN for a list of one."""
    pairs = torch.ones_like(present[0]).expand(len(present[0]), -1).triu(1) & present[:, None]  # (B, K, K)
    right = pairs & (rewards[:, :, None] > rewards[:, None, :])
    return right.sum((1, 2)) / pairs.sum((1, 2)).to(rewards.dtype)
