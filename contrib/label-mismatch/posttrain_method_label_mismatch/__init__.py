"""Mismatch: overwrite what is to be forgotten by answers that belong to other prompts.

Papers: Yao et al. 2023, arXiv:2310.10683 (its random mismatch alone); as a baseline in Wang et al. 2024,
arXiv:2410.11143, section 5.

Loss: the negative log-likelihood of mismatched answers to the forgotten prompts and of the retained completions,
averaged over the tokens of both together.

Differs from the paper: a prompt gets one other answer for the whole run, where the authors draw anew in each epoch.

Metrics:
- mismatch_nll: negative log-probability of a mismatched answer's token. Falls towards the logarithm of the number of
  different answers; below it the mismatches themselves are memorised.
- retain_nll: the same of retained tokens. Falls or stays.
"""

import random
from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, samples


@dataclass(frozen=True)
class Config:
    """Mismatch has no options of its own."""


@hookimpl
def posttrain_rows(rows):
    """Give each row its forgotten prompt with the forgotten answer of another row."""
    parts = [samples.split(row["forget"]) for row in rows]
    order = random.Random(0).sample(range(len(rows)), len(rows))
    other = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [
        {**row, "alternative": {"prompt": parts[place][0], "completion": parts[other[place]][1]}}
        for place, row in enumerate(rows)
    ]


@hookimpl
def posttrain_annotate(examples):
    """The share of mismatched answers among all trained tokens of the step."""
    counts = {role: sum(one.sequences[role][0].count for one in examples) for role in ("alternative", "retain")}
    share = counts["alternative"] / max(sum(counts.values()), 1)
    return {"mismatch_share": torch.full((len(examples),), share, dtype=torch.float64)}


@hookimpl
def posttrain_loss(batch, policy):
    """Two means, weighted so that together they are the mean over the tokens of both."""
    mismatch, retain = policy.alternative, policy.retain
    share = batch.mismatch_share[0].to(mismatch.logps)
    loss = {
        "mismatch": PerToken(-share * mismatch.logps, mismatch.mask),
        "retain": PerToken(-(1 - share) * retain.logps, retain.mask),
    }
    return loss, {
        "mismatch_nll": PerToken(-mismatch.logps.detach(), mismatch.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
