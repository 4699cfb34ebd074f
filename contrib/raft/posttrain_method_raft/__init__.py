"""RAFT: the policy imitates the best of its own answers.

Paper: Dong et al. 2023, "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", arXiv:2304.06767,
algorithm 1.

Loss in words: each prompt is answered group-size times; the answer with the highest reward, of equal ones the first,
is kept and learnt as in supervised fine-tuning:

    loss = -log p(token),   averaged over all tokens that are kept

Differs from the paper: rounds are as long as a step; the paper samples for many prompts, then trains to convergence.

Metrics:
- rollouts_learnt: one over group-size.
- nll: negative log-probability of a kept token in nats. Falls.
- entropy: of the next-token distribution in nats. Falls quickly; below 0.01 all answers are the same.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options: there are none; group-size is the paper's K."""


@hookimpl
def posttrain_select(rollouts, rewards):
    """The best answer to each prompt."""
    best: dict[int, int] = {}
    for row, group in enumerate(rollouts.group.tolist()):
        if group not in best or rewards[row] > rewards[best[group]]:
            best[group] = row
    return Selection([rollouts.items[row] for row in best.values()])


@hookimpl
def posttrain_advantages(rewards):
    """1 for what is kept: (B,)."""
    return torch.ones_like(rewards)


@hookimpl
def posttrain_loss(batch, policy):
    """Negative log-probability of each token that is kept."""
    view = policy.completion
    metrics = {"nll": PerToken(-view.logps.detach(), view.mask)}
    return PerToken(-batch.advantages.reshape(len(view.logps), -1) * view.logps, view.mask), metrics
