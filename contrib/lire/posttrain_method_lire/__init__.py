"""LIRE: answers weighed by a softmax of their log-probabilities, the average score is raised.

Paper: Zhu et al. 2024, "LIRE: listwise reward enhancement for preference alignment", arXiv:2405.13516.

Loss: the shares of a prompt's answers are the softmax of their log-probabilities (sums over tokens) over a
temperature. The loss is minus the sum of share times score: the expected score if the policy had only these answers, a
policy gradient without sampling. The scores of a list are made to sum to 1 by a softmax, as in the authors' code;
``normalise_scores`` false takes them as they are.

Differs from the paper: the term that imitates the best answer is left out. Sums favour short answers, so the
temperature has to grow with their length.

Metrics:
- expected_score: mean score under the shares. Rises towards the best answer's.
- reward_best, reward_worst: log-probability of the first and the last answer. The first rises or holds.
- rank_accuracy: share of a prompt's pairs of answers whose log-probabilities are in the order of the list. Rises.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of LIRE."""

    temperature_of_list: float = 2.0
    """Temperature of the shares, T in arXiv:2405.13516, above 0."""

    normalise_scores: bool = True
    """Whether a softmax makes the scores of a list sum to 1."""

    def __post_init__(self) -> None:
        if not self.temperature_of_list > 0:
            raise ValueError(f"temperature_of_list is {self.temperature_of_list}, expected a number above 0.")


@hookimpl
def posttrain_loss(batch, policy, config):
    """Minus the expected score."""
    view = policy.completion
    rewards, present = view.listed(view.sum), view.present  # (B, K) each
    share = torch.where(present, rewards / config.temperature_of_list, -torch.inf).softmax(1)  # (B, K)
    scores = batch.scores.to(rewards)  # (B, K), zeros behind a list's answers
    if config.normalise_scores:
        scores = torch.where(present, scores, -torch.inf).softmax(1)
    expected = (share * scores).sum(1)  # (B,)
    loss = -expected
    metrics = {"expected_score": expected.detach()}
    return loss, metrics | {
        "reward_best": rewards[:, 0].detach(),
        "reward_worst": rewards.gather(1, view.counts[:, None] - 1)[:, 0].detach(),
        "rank_accuracy": _rank_accuracy(rewards.detach(), present),
        "logp_best": rewards[:, 0].detach(),
    }


def _rank_accuracy(rewards, present):
    """Share of the pairs of a list ``(B, K)`` that are in its order; NaN for a list of one."""
    pairs = torch.ones_like(present[0]).expand(len(present[0]), -1).triu(1) & present[:, None]  # (B, K, K)
    right = pairs & (rewards[:, :, None] > rewards[:, None, :])
    return right.sum((1, 2)) / pairs.sum((1, 2)).to(rewards.dtype)
