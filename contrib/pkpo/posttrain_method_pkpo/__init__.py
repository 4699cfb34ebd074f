"""Pass-at-k policy optimisation: the gradient of the expected best of k answers, without bias, from n answers.

Paper: Walder and Karkhanis 2025, "Pass@K Policy Optimization: Solving Harder Reinforcement Learning Problems",
arXiv:2505.15201.

Loss in words: rewards are transformed so that the plain policy gradient with them is that of the expected maximum over
k answers. Over all sets of k of a prompt's n answers, an answer's new reward is the sum of the best rewards of the sets
that it is in, divided by the number of all sets. With baseline "loo_minus_one" each set counts only by how much the
answer raises its best reward, which has the same expectation and less variance; with "loo" the mean of the others' new
rewards is taken off. The sum over a prompt's answers of this times the log-probability is averaged over prompts:

    A_i = sum over sets I of k with i of (max of I [- max of I without i]) / C(n, k)
    loss = mean over prompts of  -sum over answers of  A_i sum over tokens of log p

Differs from the paper: a group with fewer than k answers takes k as its size. With k 1, loo_minus_one is the same as
loo, since a set of nothing has no best. The paper lowers k to 1 in the course of training; here it is fixed.

Metrics:
- best_of_k: estimate of the expected best reward of k answers. Rises.
- advantage_size: mean absolute advantage. 0 means that no answer raises the best of any set.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    k: int = 4
    """Answers of which the best counts (the paper: 8 and less, of 16)."""
    baseline: Literal["none", "loo", "loo_minus_one"] = "loo_minus_one"
    """What is taken off: nothing, the mean of the others' new rewards, or each set's best without the answer."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, expected a number of answers from 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Each answer's share in the expected best of k, and the size of its group: (B,) each."""
    advantages, size, best = torch.zeros_like(rewards), torch.ones_like(rewards), torch.full_like(rewards, torch.nan)
    for group in rollouts.group.unique():
        rows = ((rollouts.group == group) & ~rewards.isnan()).nonzero()[:, 0]
        if not len(rows):
            continue
        k, values = min(config.k, len(rows)), rewards[rows].tolist()
        found, best[rows] = _transformed(values, k, config.baseline == "loo_minus_one" and k > 1)
        advantages[rows], size[rows] = torch.tensor(found, dtype=rewards.dtype), float(len(rows))
    if config.baseline == "loo" or (config.baseline == "loo_minus_one" and config.k == 1):
        advantages = advantages - tensors.leave_one_out_mean(advantages, rollouts.group)
    return {"advantages": advantages, "answers": size, "best_of_k": best}


@hookimpl
def posttrain_loss(batch, policy):
    """Log-probabilities of a completion, summed and weighted; the mean over prompts, not over completions."""
    view = policy.completion
    metrics = {"best_of_k": batch.best_of_k}
    return -batch.answers * batch.advantages * view.sum, metrics | {"advantage_size": batch.advantages.abs()}


def _transformed(values: list[float], k: int, minus_one: bool) -> tuple[list[float], float]:
    """New rewards of n answers, and the estimate of the best of k. Sets are counted by their largest member."""
    count = len(values)
    order = sorted(range(count), key=lambda place: values[place])
    ascending = [values[place] for place in order]
    sets = math.comb(count, k)
    found = [0.0] * count
    for rank, place in enumerate(order):
        total = ascending[rank] * math.comb(rank, k - 1)  # it is the best of its set
        if k > 1:
            total += sum(ascending[top] * math.comb(top - 1, k - 2) for top in range(rank + 1, count))
        if minus_one:
            others = ascending[:rank] + ascending[rank + 1 :]
            total -= sum(value * math.comb(turn, k - 2) for turn, value in enumerate(others))
        found[place] = total / sets
    return found, sum(value * math.comb(rank, k - 1) for rank, value in enumerate(ascending)) / sets
