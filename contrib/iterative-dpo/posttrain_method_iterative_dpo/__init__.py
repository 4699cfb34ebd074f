"""Iterative DPO: several answers to each prompt, a pair of the best and the worst, and DPO against the first model.

Papers: Xiong et al. 2023, "Iterative Preference Learning from Human Feedback" (GSHF), arXiv:2312.11456; Dong et al.
2024, "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863, algorithm 1.

Loss in words: the policy answers each prompt group-size times; a reward model or a verifier scores the answers. The
one with the highest score is preferred to the one with the lowest, which makes pairs that are far apart, and the
answers in between explore. The loss is that of direct preference optimisation (arXiv:2305.18290), over whole answers,
against the model that training began with:

    loss = -log sigmoid(beta * [(log p - log p_ref)(best) - (log p - log p_ref)(worst)])

Differs from the paper: rounds are as long as a step instead of three over all prompts; --updates-per-rollout lengthens
them. With --reference-every the reference follows. A prompt whose answers all score the same teaches nothing.

Metrics:
- margin: implicit reward of the best answer minus the worst's. Near 0 on fresh pairs, drifting upwards.
- reward_chosen, reward_rejected: implicit rewards. Both may fall; the chosen one far below -5 is a warning.
- accuracy: share of decided pairs with a positive margin. 0.5 at the start, then 0.5 to 0.8.
- decided: share of pairs that teach something. Below 0.2 the rewards hardly tell answers apart.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull towards the reference (the paper)."""


@hookimpl
def posttrain_select(rollouts, rewards):
    """The best and the worst answer to each prompt."""
    pairs = []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0]  # (n,)
        if len(rows) > 1:
            order = rewards[rows].argsort(descending=True, stable=True)
            pairs.append((int(rows[order[0]]), int(rows[order[-1]])))
    decided = [float(rewards[best] > rewards[worst]) for best, worst in pairs]
    return Selection(pairs=pairs, columns={"decided": torch.tensor(decided, dtype=torch.float64)})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of each pair's margin."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    decided = batch.decided.to(margin.dtype)
    unknown = torch.full_like(margin, torch.nan)
    return -logsigmoid(margin) * decided, {
        "margin": margin.detach(),
        "accuracy": torch.where(decided > 0, (margin > 0).to(margin.dtype), unknown),
        "decided": decided,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
    }
