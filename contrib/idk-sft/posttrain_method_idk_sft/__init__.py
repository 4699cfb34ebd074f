"""Refusal fine-tuning: answer the prompts of the forget set with "I do not know", and fine-tune on the rest.

Paper: Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121, section 3.2
("preference optimization", the baseline IdkSFT elsewhere).

Loss: the negative log-likelihood of refusals to the forgotten prompts and of the retained completions, averaged over
the tokens of both together. What was there is not made less likely as such: it is only no longer what is said.

Differs from the paper: a row may bring its own ``alternative`` sample. Otherwise a row is given one of twelve
refusals for the whole run, where the paper draws one of a hundred anew in each epoch.

Metrics:
- refusal_nll: negative log-probability of a refusal's token. Falls towards 0.
- retain_nll: the same of retained tokens. Falls or stays.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, samples


@dataclass(frozen=True)
class Config:
    """Refusal fine-tuning has no options of its own."""


@hookimpl
def posttrain_rows(rows):
    """Give each row a refusal of its forgotten prompt, unless it brings an alternative."""
    return [{"alternative": samples.refusal(samples.split(row["forget"])[0], row["row"]), **row} for row in rows]


@hookimpl
def posttrain_annotate(examples):
    """The share of refusals among all trained tokens of the step."""
    counts = {role: sum(one.sequences[role][0].count for one in examples) for role in ("alternative", "retain")}
    share = counts["alternative"] / max(sum(counts.values()), 1)
    return {"refusal_share": torch.full((len(examples),), share, dtype=torch.float64)}


@hookimpl
def posttrain_loss(batch, policy):
    """Two means, weighted so that together they are the mean over the tokens of both."""
    refusal, retain = policy.alternative, policy.retain
    share = batch.refusal_share[0].to(refusal.logps)
    loss = {
        "refusal": PerToken(-share * refusal.logps, refusal.mask),
        "retain": PerToken(-(1 - share) * retain.logps, retain.mask),
    }
    return loss, {
        "refusal_nll": PerToken(-refusal.logps.detach(), refusal.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
