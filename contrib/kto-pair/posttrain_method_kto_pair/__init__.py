"""Paired KTO: each answer against the mean log-ratio of the opposite kind.

Paper: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306; on pairs as
in early versions of TRL (kto_pair).

Loss: the divergence of each side is the mean log-ratio of all chosen, or all rejected, answers of the step, where
positive. A chosen answer's loss is one minus the sigmoid of beta times its log-ratio above the divergence of the
rejected side; a rejected answer's one minus the sigmoid of beta times the divergence of the chosen side above its log-
ratio. A pair's loss is the mean of the two.

Differs from the paper: the paper takes answers without a partner and estimates the divergence from mismatched ones
(the method kto). The divergences are worked out from the whole optimiser step, over all devices, and have no gradient,
as in the paper; TRL's code let one flow.

Metrics:
- kl_chosen, kl_rejected: the divergences, in nats; both grow from 0 and should stay small.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of paired KTO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_annotate(examples, models):
    """The divergence of each side over the step, the same number for every pair."""
    columns = {}
    for role in ("chosen", "rejected"):
        rows = [example.sequences[role][0] for example in examples]
        pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
        ratios = torch.stack([(ours - theirs).sum() for ours, theirs in pairs])  # (B,)
        columns[f"kl_{role}"] = ratios.mean().clamp(min=0).expand(len(rows))  # (B,)
    return columns


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Mean of the two answers' losses."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    kl_chosen, kl_rejected = batch.kl_chosen.to(margin), batch.kl_rejected.to(margin)  # (B,) each
    worth = (reward_chosen - config.beta * kl_rejected).sigmoid()
    blame = (config.beta * kl_chosen - reward_rejected).sigmoid()
    loss = 1 - 0.5 * (worth + blame)  # (B,)
    return loss, {
        "kl_chosen": kl_chosen,
        "kl_rejected": kl_rejected,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
