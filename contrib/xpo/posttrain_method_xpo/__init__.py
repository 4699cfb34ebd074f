"""Exploratory preference optimisation: online DPO that is optimistic about answers the reference would not give.

Paper: Xie et al. 2024, "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient
RLHF", arXiv:2405.21046, algorithm 1.

Loss in words: to each prompt the policy gives one answer and the reference another. A judge, a reward model or a
verifier says which is better, and the pair is learnt as in direct preference optimisation (arXiv:2305.18290). Added is
alpha times the policy's log-probability of the reference's answer: lowering it moves probability to answers that have
not been seen yet, which is the exploration bonus.

    mean of [-log sigmoid(margin) + alpha * log policy(reference's answer)]

Differs from the paper: alpha is constant; the paper lets it shrink with the number of rounds. A pair that cannot be
decided (equal rewards, no verdict) has the second term only.

Metrics:
- margin: implicit reward of the preferred answer minus the other's. Starts at 0 and rises.
- accuracy: share of decided pairs with a positive margin. From 0.5 towards 0.7.
- win_rate: share of decided pairs that the policy's own answer wins. 0.5 at the start; it should rise.
- decided: share of pairs with a verdict. Below 0.2 the rewards hardly tell answers apart.
- logp_reference_answer: log-probability of the reference's answers under the policy. Falls slowly; a fall of tens of
  nats in a few steps means that alpha is too large.
"""

from dataclasses import dataclass

import torch
from posttrain import SampleRequest, Selection, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull towards the reference (the paper's section 5; TRL)."""
    alpha: float = 1e-5
    """Weight of the exploration bonus (TRL)."""


@hookimpl
def posttrain_plan_rollouts(prompts):
    """One answer of the policy, one of the reference."""
    return [[SampleRequest(1), SampleRequest(1, source="reference")] for _ in prompts]


@hookimpl
def posttrain_select(rollouts):
    """The policy's and the reference's answer to each prompt, the better one first."""
    own = {int(g): i for i, g in enumerate(rollouts.group) if rollouts.source[i] != "reference"}
    theirs = {int(g): i for i, g in enumerate(rollouts.group) if rollouts.source[i] == "reference"}
    groups = [group for group in own if group in theirs]
    first, second = [own[g] for g in groups], [theirs[g] for g in groups]
    preference = rollouts.prefer(first, second).double()  # (P,): that the policy's answer is better
    decided = (preference != 0.5) & ~preference.isnan()
    lost = preference < 0.5
    pairs = [(b, a) if worse else (a, b) for a, b, worse in zip(first, second, lost.tolist(), strict=True)]
    return Selection(pairs=pairs, columns={"decided": decided.double(), "reference_won": lost.double()})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of each pair's margin, and the bonus."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    margin = config.beta * (log_ratio_chosen - log_ratio_rejected)
    decided = batch.decided.to(margin.dtype)
    reference_won = batch.reference_won > 0
    reference_answer = torch.where(reference_won, policy.chosen.sum, policy.rejected.sum)  # (B,)
    unknown = torch.full_like(margin, torch.nan)
    return {"preference": -logsigmoid(margin) * decided, "exploration": config.alpha * reference_answer}, {
        "margin": margin.detach(),
        "accuracy": torch.where(decided > 0, (margin > 0).to(margin.dtype), unknown),
        "win_rate": torch.where(decided > 0, (~reference_won).to(margin.dtype), unknown),
        "decided": decided,
        "logp_reference_answer": reference_answer.detach(),
    }
