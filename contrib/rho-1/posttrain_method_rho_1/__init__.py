"""Rho-1: selective language modelling, which learns only tokens that are worth it.

Paper: Lin et al. 2024, "Rho-1: Not All Tokens Are What You Need", arXiv:2404.07965, equations 3 and 4.

Loss: a reference trained on little, good data scores every token; a token's excess loss is the policy's negative
log-probability less the reference's. Of all tokens of the step the share with the largest excess is learnt, by
likelihood, averaged over these. What both models find hard (noise) or easy (known) is passed over.

Differs from the paper: nothing. The ranking is over the whole optimiser step and all devices, in a pass without
gradient. Name the reference with ``--reference-model``; without one it is the model at the start, whose excess is 0
in the first step.

Metrics:
- kept: share of tokens that are learnt.
- excess: mean excess loss of the tokens that are learnt, in nats. Falls as the policy catches up.
- nll: mean negative log-probability of all tokens. Falls.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of selective language modelling."""

    kept_share: float = 0.6
    """Share of tokens that are learnt (section 3.1 of the paper: 0.6 for 1B models, 0.7 for 7B)."""

    def __post_init__(self) -> None:
        if not 0 < self.kept_share <= 1:
            raise ValueError(f"kept_share is {self.kept_share}, expected a share above 0, at most 1.")


@hookimpl
def posttrain_annotate(examples, models, config):
    """Which tokens of the step are learnt, and every token's excess loss."""
    rows = [example.sequences["completion"][0] for example in examples]
    policy, reference = models.logps(rows, "policy"), models.logps(rows, "reference")
    excess = [r - p for p, r in zip(policy, reference, strict=True)]  # (t,) each
    every = torch.cat(excess)  # (N,)
    count = math.ceil(config.kept_share * len(every))
    kept = torch.zeros(len(every), dtype=torch.bool)
    kept[every.argsort(descending=True, stable=True)[:count]] = True
    return {"kept": list(kept.split([len(one) for one in excess])), "excess": excess}


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood of the chosen tokens."""
    view = policy.completion
    return PerToken(-view.logps, batch.kept), {
        "kept": PerToken(batch.kept.to(view.logps.dtype), view.mask),
        "excess": PerToken(batch.excess, batch.kept),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
