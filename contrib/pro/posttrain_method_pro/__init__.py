"""Preference ranking optimisation: at each rank the better answer against all worse ones, at a temperature of the
gap in score.

Paper: Song et al. 2023, "Preference Ranking Optimization for Human Alignment", arXiv:2306.17492.

Loss: p of an answer is its mean log-probability per token. At rank k the answer k is contrasted with all later ones:
p_j is multiplied by the gap in score between k and j, p_k by the largest of these gaps, and the negative log-softmax
of k is taken. The rank term is the sum over ranks; the nll term is ``sft_weight`` (K - 1)^2 times the negative log-
likelihood, summed over tokens, of the best answer.

L_k = log(exp(t_kk p_k) + sum_{j > k} exp(t_kj p_j)) - t_kk p_k,  t_kj = score_k - score_j,  t_kk = max_j t_kj

Differs from the paper: nothing: formulas are those of the authors' code. A rank whose answers all have equal scores
has temperature 0, hence no gradient.

Metrics:
- rank, nll: the two terms. Both fall.
- reward_best, reward_worst: mean log-probability per token of the first and the last answer. The first rises or holds.
- rank_accuracy: share of a prompt's pairs of answers whose mean log-probabilities are in the order of the list. Rises.
- logp_best: log-probability of the best answer under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of preference ranking optimisation."""

    sft_weight: float = 0.05
    """Weight of the likelihood of the best answer, beta in arXiv:2306.17492."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """Contrasts rank by rank, and the likelihood of the best answer."""
    view = policy.completion
    rewards, present = view.listed(view.mean), view.present  # (B, K) each
    scores = batch.scores.to(rewards)
    later = torch.ones_like(present[0]).expand(rewards.shape[1], -1).triu(1) & present[:, None]  # (B, K, K): j behind k
    gaps = torch.where(later, scores[:, :, None] - scores[:, None, :], torch.zeros((), dtype=scores.dtype))
    own = gaps.amax(2) * rewards  # (B, K)
    others = torch.where(later, gaps * rewards[:, None], -torch.inf)  # (B, K, K)
    contrast = torch.cat([own[..., None], others], 2).logsumexp(2) - own  # (B, K); 0 at the last rank
    likelihood = (view.counts - 1) ** 2 * view.listed(view.sum)[:, 0]
    loss = {"rank": contrast.sum(1), "nll": -config.sft_weight * likelihood}  # (B,) each
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
