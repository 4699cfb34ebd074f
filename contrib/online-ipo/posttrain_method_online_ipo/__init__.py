"""Online IPO and IPO-MD: identity preference optimisation on pairs that the policy writes while it trains.

Paper: Calandriello et al. 2024, "Human Alignment of Large Language Models through Online Preference Optimisation",
arXiv:2403.08635, sections 3 and 4. The loss is that of Azar et al. 2023, arXiv:2310.12036.

Loss in words: each prompt is answered twice, a judge, a reward model or a verifier says which answer is better. The
margin is how much more the policy has raised the better answer above the reference than the other one, over whole
answers; it is drawn to a fixed target, from both sides:

    loss = (margin - 1 / (2 beta))^2,   margin = (log p - log p_ref)(better) - (log p - log p_ref)(other)

On the policy's own pairs the fixed point is the Nash equilibrium of the regularised preference. With ``mixture`` above
0 the answers come from a geometric mixture with the reference (IPO-MD), which plays against a tamer opponent.

Differs from the paper: margins are of sums over tokens, as in the paper and TRL; ipo, offline, has means by default. A
pair that cannot be decided teaches nothing, but counts in the mean.

Metrics:
- margin: of log-ratios in nats. Drifts to 1 / (2 beta); 5 at the default.
- accuracy: share of decided pairs with a positive margin. 0.5 at the start, then 0.5 to 0.8.
- decided: share of pairs that teach something. Below 0.2 the rewards hardly tell answers apart.
"""

from dataclasses import dataclass

import torch
from posttrain import SampleRequest, Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Strength of the pull towards the reference; the target is 1 / (2 beta) (TRL)."""
    mixture: float = 0.0
    """Share of the reference in who answers (IPO-MD; the paper: 0.125 to 0.5). 0 is the policy itself."""

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.mixture <= 1:
            raise ValueError(
                f"beta is {self.beta} and mixture {self.mixture}, expected above 0 and a share from 0 to 1"
            )


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config):
    """The policy answers, or its mixture with the reference."""
    return [[SampleRequest(group_size, mixture=config.mixture)] for _ in prompts]


@hookimpl
def posttrain_select(rollouts):
    """Two answers of a prompt each, the better one first."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(rollouts.group.tolist()):
        places.setdefault(group, []).append(place)
    pairs = [(own[i], own[i + 1]) for own in places.values() for i in range(0, len(own) - 1, 2)]
    preference = rollouts.prefer([a for a, _ in pairs], [b for _, b in pairs]).double()  # (P,)
    decided = (preference != 0.5) & ~preference.isnan()
    better_first = [pair if not p < 0.5 else pair[::-1] for pair, p in zip(pairs, preference.tolist(), strict=True)]
    return Selection(pairs=better_first, columns={"decided": decided.double()})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared distance of each pair's margin from the target."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    margin = log_ratio_chosen - log_ratio_rejected
    decided = batch.decided.to(margin.dtype)
    unknown = torch.full_like(margin, torch.nan)
    return (margin - 1 / (2 * config.beta)).square() * decided, {
        "margin": margin.detach(),
        "accuracy": torch.where(decided > 0, (margin > 0).to(margin.dtype), unknown),
        "decided": decided,
    }
