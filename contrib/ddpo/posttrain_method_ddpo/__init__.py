"""Dense DPO: the tokens in which two answers differ count more than those they share.

Paper: Yu et al. 2023, "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human
Feedback", arXiv:2312.00849.

Loss: people corrected the wrong parts of an answer, so chosen and rejected differ in some segments. An answer's score
is the weighted mean of its tokens' log-probabilities, under policy and reference alike: tokens of changed segments
have the weight gamma, the others 1. The loss is DPO's of the scores' log-ratios.

Differs from the paper: text only. Which tokens changed comes from the two answers' tokens: what is left after matching
runs of at least ``least_match`` equal tokens. Some of the authors' scripts take the weighted sum instead of the mean.

Metrics:
- changed: share of the pair's tokens that differ. Depends on the data alone.
- reward_chosen, reward_rejected: beta times the weighted mean log-ratio of each answer, policy over reference. Start
  at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of dense DPO."""

    beta: float = 0.5
    """Strength of the pull towards the reference, on weighted means."""
    gamma: float = 5.0
    """Weight of a changed token; 1 is length-normalised DPO."""
    least_match: int = 3
    """Shortest run of equal tokens that counts as unchanged."""


@hookimpl
def posttrain_annotate(examples, config):
    """Which tokens of each answer the other one does not have."""
    columns = {"chosen.changed": [], "rejected.changed": []}
    for example in examples:
        rows = [example.sequences[role][0] for role in ("chosen", "rejected")]
        texts = [row.ids[row.trained].tolist() for row in rows]
        changed = [torch.ones(len(text), dtype=torch.bool) for text in texts]
        for match in SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks():
            if match.size >= config.least_match:
                changed[0][match.a : match.a + match.size] = False
                changed[1][match.b : match.b + match.size] = False
        for name, mask in zip(columns, changed, strict=True):
            columns[name].append(mask)
    return columns


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the margin of weighted means."""
    changed = [batch.chosen_changed.to(policy.chosen.logps), batch.rejected_changed.to(policy.chosen.logps)]  # (B, T)
    sides = ((policy.chosen, reference.chosen), (policy.rejected, reference.rejected))
    reward_chosen, reward_rejected = (
        config.beta * _weighted(ours, theirs, 1 + (config.gamma - 1) * mask)
        for (ours, theirs), mask in zip(sides, changed, strict=True)
    )  # (B,) each
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin)  # (B,)
    tokens = (policy.chosen.lengths + policy.rejected.lengths).clamp(min=1)  # (B,)
    return loss, {
        "changed": sum(view.sum_of(mask) for (view, _), mask in zip(sides, changed, strict=True)) / tokens,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _weighted(policy, reference, weight):
    """Weighted mean log-ratio ``(B,)``; 0 for an answer without tokens."""
    return policy.sum_of(weight * (policy.logps - reference.logps)) / policy.sum_of(weight).clamp(min=1)
