"""REAL: rewards as labels. Good completions of a group are classified against bad ones by how much likelier they
became.

Paper: 2026, arXiv:2602.05630; the loss as in ms-swift (loss_type real).

Loss in words: completions above their group's mean reward are good, the others bad. A completion's score is the mean
log-ratio of its tokens to the policy that sampled it. Bad ones are pushed below 0 and good ones above, each by its
share in a softmax, so that those furthest on the wrong side learn most and none without bound:

    loss = mean over groups of  log(1 + sum over bad of exp(s / tau)) + log(1 + sum over good of exp(-s / tau))

A group that has only one kind adds 0. The loss couples the completions of a group; its slope by each one's score is
worked out from the whole optimiser step before its first forward pass with gradient, at the cost of one more without,
so that a group may lie in different micro-batches.

Differs from the paper: where minibatches-per-rollout is above 1, a step has only a part of each group.

Metrics:
- positive: share of completions that are labelled good.
- score_good, score_bad: mean log-ratio of good and of bad completions. 0 in the first update of a batch, then apart.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    tau: float = 0.5
    """Temperature of the scores (ms-swift)."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far each reward lies above its group's mean: its sign is the label: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)


@hookimpl
def posttrain_annotate(examples, models, config):
    """Each completion's score, its part of the step's loss, and the slope of that loss by its score: (B,) each."""
    sequences = [example.sequences["completion"][0] for example in examples]
    now = models.logps(sequences, "policy")  # (t,) each
    moved = [row - one.per_token.get("old_logps", row) for row, one in zip(now, sequences, strict=True)]
    score = torch.stack([row.sum() / max(len(row), 1) for row in moved])  # (B,)
    worth = torch.tensor([example.columns["advantages"] for example in examples], device=score.device)  # (B,)
    group = torch.tensor([example.columns["group"] for example in examples], device=score.device)  # (B,)
    part, slope = torch.zeros_like(score), torch.zeros_like(score)
    scale = len(examples) / len(group.unique())  # the core averages over examples, the paper over groups
    for one in group.unique():
        good, bad = (group == one) & (worth > 0), (group == one) & (worth <= 0)
        if good.any() and bad.any():
            for rows, sign in ((good, -1), (bad, 1)):
                logits = torch.cat([score.new_zeros(1), sign * score[rows] / config.tau])
                part[group == one] += scale * logits.logsumexp(0) / (group == one).sum()
                slope[rows] = scale * sign * logits.softmax(0)[1:] / config.tau
    return {"score": score, "part": part, "slope": slope}


@hookimpl
def posttrain_loss(batch, policy):
    """A completion's part of the loss, with the slope by its score."""
    view = policy.completion
    score = view.mean_of(view.logps - batch.old_logps)  # (B,)
    loss = batch.part.to(score.dtype) + batch.slope.to(score.dtype) * (score - batch.score.to(score.dtype))
    positive = (batch.advantages > 0).to(score.dtype)  # (B,)
    metrics = {
        "positive": positive,
        "score_good": score.detach().where(positive > 0, torch.nan),
        "score_bad": score.detach().where(positive == 0, torch.nan),
    }
    return loss, metrics
