"""Pass@k training: what counts is whether any of k answers is right, so that the policy keeps exploring.

Paper: Chen et al. 2025, "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning
Models", arXiv:2508.10751, section 2.4 (the analytical advantage).

Loss in words: each set of k of a prompt's N completions has the reward 1 where any of them is correct. Over all such
sets, with mean m and deviation s of that reward, an answer's advantage is the mean over the sets that it is in. With W
wrong answers:

    m = 1 - C(W, k) / C(N, k),   s = sqrt(m (1 - m))
    A of a right one = (1 - m) / s,  of a wrong one = (1 - m - C(W - 1, k - 1) / C(N - 1, k - 1)) / s;  0 where s is 0

The clipped policy gradient with it is averaged over all tokens of the step, clipped further up than down, as in DAPO.

Differs from the paper: a group with fewer than k completions takes k as its size. Rewards above correct_above count as
right.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- pass_at_k: estimate of the probability that one of k answers is right. Rises; near 1, lower k.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import hookimpl
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    k: int = 4
    """Answers of which one has to be right (the paper: 4 to 8)."""
    correct_above: float = 0.0
    """A completion with a larger reward counts as correct: 0 fits rewards of 0 and 1, and of -1 and 1."""
    epsilon_low: float = 0.2
    """How far the probability ratio may fall below 1 before it is clipped (DAPO, arXiv:2503.14476)."""
    epsilon_high: float = 0.28
    """How far it may rise above 1 (DAPO, arXiv:2503.14476)."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, expected a number of answers from 1")


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """The mean over all sets of k answers that each one is in, of the set's advantage: (B,)."""
    advantages, solved = torch.zeros_like(rewards), torch.zeros_like(rewards)  # (B,) each
    for group in rollouts.group.unique():
        rows = ((rollouts.group == group) & ~rewards.isnan()).nonzero()[:, 0]
        right = rewards[rows] > config.correct_above
        count, wrong = len(rows), int((~right).sum())
        k = min(config.k, count)
        if count == 0:
            continue
        mean = 1 - math.comb(wrong, k) / math.comb(count, k)
        solved[rows] = mean
        if 0 < mean < 1:
            deviation = (mean * (1 - mean)) ** 0.5
            all_wrong = math.comb(wrong - 1, k - 1) / math.comb(count - 1, k - 1)
            good, bad = (1 - mean) / deviation, (1 - mean - all_wrong) / deviation
            advantages[rows] = torch.where(right, good, bad).to(rewards.dtype)
    return {"advantages": advantages, "pass_at_k": solved}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("pass_at_k",))
