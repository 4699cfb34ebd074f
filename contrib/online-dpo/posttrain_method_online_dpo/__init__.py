"""Online direct preference optimisation: pairs are written by the policy itself and judged while it trains.

Paper: Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback", arXiv:2402.04792, algorithm 1. The
loss is that of Rafailov et al. 2023, arXiv:2305.18290, equation 7.

Loss in words: the policy answers each prompt twice. A judge, a reward model or a verifier says which answer is better;
with rewards that is the higher one. The loss is the negative log-sigmoid of beta times how much more the policy has
raised the preferred answer above the reference than the other one, over whole answers.

Differs from the paper: a pair that cannot be decided (equal rewards, no verdict) teaches nothing, but counts in the
mean; the paper's annotator always decides. With a group_size of 4 or more, neighbours form the pairs.

Metrics:
- margin: implicit reward of the preferred answer minus the other's. Near 0 on fresh pairs, drifting upwards.
- accuracy: share of decided pairs with a positive margin. 0.5 at the start, then 0.5 to 0.8.
- decided: share of pairs that teach something. Below 0.2 the rewards hardly tell answers apart.
- preference: probability that the preferred answer is better. Near 0.5 the judge is guessing.
- reward_chosen, reward_rejected: implicit rewards. Both may fall; the chosen one far below -5 is a warning.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull towards the reference (section 4 of the paper)."""
    missing_end_penalty: float = 0.0
    """Taken from the reward of an answer that was cut off (TRL: missing_eos_penalty)."""


@hookimpl
def posttrain_select(rollouts, config):
    """Two answers of a prompt each, the better one first."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(rollouts.group.tolist()):
        places.setdefault(group, []).append(place)
    pairs = [(own[i], own[i + 1]) for own in places.values() for i in range(0, len(own) - 1, 2)]
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    cut_off = (~rollouts.finished).double()
    odds = rollouts.prefer(first, second).double().logit(eps=1e-12)  # (P,): log-odds that the first is better
    odds = odds - config.missing_end_penalty * (cut_off[first] - cut_off[second])
    decided = (odds != 0) & ~odds.isnan()
    preferred = torch.where(decided, odds.abs().sigmoid(), torch.nan)
    better_first = [pair if not odd < 0 else pair[::-1] for pair, odd in zip(pairs, odds.tolist(), strict=True)]
    return Selection(pairs=better_first, columns={"decided": decided.double(), "preference": preferred})


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
        "preference": batch.preference,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
    }
