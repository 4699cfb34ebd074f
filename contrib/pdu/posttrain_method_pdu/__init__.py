"""Primal-dual unlearning: flat logits on the forget set, subject to a budget for the loss on the retain set.

Paper: Entesari et al. 2025, "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models",
arXiv:2506.05314.

Loss: at a forgotten token the squared distance of the largest logit from the mean logit, which is 0 for a uniform
prediction; the constraint that the retain loss stays within its budget enters with a multiplier lambda:

    forget: (max_v z_v - mean_v z_v)^2        retain: lambda (- mean logp - budget)

After each step lambda <- max(0, lambda + dual_rate (retain loss - budget)): it grows while the budget is exceeded and
shrinks while there is room. It is kept in checkpoints.

Differs from the paper: warm-up is counted in steps; without ``retain_budget`` the budget is the retain loss of the
first step, so that nothing may get worse. The retain loss of the dual step costs a pass over the step's retain samples.

Metrics:
- multiplier: lambda. Settles where forgetting and retaining balance; growing without end means an impossible budget.
- spread: squared distance of the largest logit from the mean at a forgotten token. Falls.
- forget_nll: negative log-probability of a forgotten token. Rises towards the logarithm of the vocabulary's size.
- retain_nll: the same of retained tokens. Near the budget.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of primal-dual unlearning."""

    forget_weight: float = 1.0
    """Weight of the forget term."""
    initial_multiplier: float = 1.0
    """lambda at the start."""
    dual_rate: float = 1.0
    """Step size of lambda."""
    retain_budget: float | None = None
    """Mean negative log-probability that retained tokens may have [that of the first step]."""
    wait_steps: int = 0
    """Steps before lambda moves."""


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_token_statistics(logits):
    """Squared distance of the largest logit from the mean one."""
    return {"spread": (logits.amax(-1) - logits.mean(-1)).square()}  # (n,)


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """The multiplier and the budget of this step; then the dual step."""
    rows = [example.sequences["retain"][0] for example in examples if "retain" in example.sequences]
    logps = torch.cat(models.logps(rows, "policy")).double()
    nll = -float(logps.mean()) if len(logps) else 0.0
    multiplier = state.get("multiplier", config.initial_multiplier)
    budget = state.setdefault("budget", nll) if config.retain_budget is None else config.retain_budget
    state["steps"] = state.get("steps", 0) + 1
    if state["steps"] > config.wait_steps:
        state["multiplier"] = max(0.0, multiplier + config.dual_rate * (nll - budget))
    columns = {"multiplier": multiplier, "budget": budget}
    return {name: torch.full((len(examples),), one, dtype=torch.float64) for name, one in columns.items()}


@hookimpl
def posttrain_loss(batch, policy, config):
    """The Lagrangian."""
    forget, retain = policy.forget, policy.retain
    multiplier, budget = batch.multiplier[0].to(retain.logps), batch.budget[0].to(retain.logps)
    loss = {
        "forget": PerToken(config.forget_weight * forget.spread, forget.mask),
        "retain": PerToken(multiplier * (-retain.logps - budget), retain.mask),
    }
    return loss, {
        "multiplier": batch.multiplier,
        "spread": PerToken(forget.spread.detach(), forget.mask),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
