"""SamPO: both answers are compared on equally many tokens, those of the longer one drawn at random.

Paper: Lu et al. 2024, "Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL
Divergence", arXiv:2406.10957.

Loss: from the longer answer as many token positions are drawn without replacement as the shorter one has tokens; an
answer's log-ratio is the sum over its kept tokens. The loss is DPO's of these log-ratios.

Differs from the paper: the authors' code draws positions for the policy and again for the reference; here they are
drawn once, so that a log-ratio is about one set of tokens. They are drawn anew at every optimiser step from the step's
number and the answer's tokens, so a run can be repeated and resumed.

Metrics:
- kept: share of the pair's tokens that count; 1 where answers are equally long.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer's kept tokens, policy over reference. Start
  at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of SamPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_annotate(examples, state):
    """Which tokens of each answer are kept."""
    state["step"] = state.get("step", 0) + 1
    columns = {"chosen.kept": [], "rejected.kept": []}
    for example in examples:
        rows = {role: example.sequences[role][0] for role in ("chosen", "rejected")}
        least = min(row.count for row in rows.values())
        for role, row in rows.items():
            random = torch.Generator().manual_seed(state["step"] + 1_000_003 * int(row.ids.sum()))
            kept = torch.zeros(row.count, dtype=torch.bool)  # (t,)
            kept[torch.randperm(row.count, generator=random)[:least] if row.count > least else slice(None)] = True
            columns[f"{role}.kept"].append(kept)
    return columns


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the margin on the kept tokens."""
    reward_chosen = config.beta * _kept(policy.chosen, reference.chosen, batch.chosen_kept)  # (B,)
    reward_rejected = config.beta * _kept(policy.rejected, reference.rejected, batch.rejected_kept)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin)  # (B,)
    tokens = (policy.chosen.lengths + policy.rejected.lengths).clamp(min=1)  # (B,)
    return loss, {
        "kept": (batch.chosen_kept.sum(-1) + batch.rejected_kept.sum(-1)) / tokens,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _kept(policy, reference, kept):
    """Log-ratio ``(B,)`` of an answer's kept tokens."""
    return policy.sum_of(kept * (policy.logps - reference.logps))
