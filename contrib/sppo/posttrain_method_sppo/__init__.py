"""Self-play preference optimisation: how often an answer beats the policy decides where its probability goes.

Paper: Wu et al. 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, equation
4.5.

Loss in words: the policy answers each prompt several times; each answer is compared with all others of its prompt,
which estimates how likely it beats the policy, P. The best and the worst are learnt from. Multiplicative weights,
which lead self-play to the Nash equilibrium of the preference, make an answer's log-ratio to the policy of the round
eta (P - 1/2); the squared difference is the loss:

    loss = 1/2 [log p/p_t (best) - eta (P_best - 1/2)]^2 + 1/2 [log p/p_t (worst) - eta (P_worst - 1/2)]^2

Differs from the paper: a round is --reference-every steps, in which answers are always the current policy's; the paper
has three rounds over 20,000 prompts each. Comparisons without a verdict count one half.

Metrics:
- win_rate_chosen, win_rate_rejected: P of the best and of the worst. Near 1 and 0; both near 0.5: nothing to learn.
- log_ratio_chosen, log_ratio_rejected: to the policy of the round, in nats. From 0, up and down.
- accuracy: share of pairs whose best answer has the higher log-ratio. From 0.5 in each round upwards.
"""

from dataclasses import dataclass

import torch
from posttrain import Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    eta: float = 1000.0
    """Learning rate of the game: how far an answer that always wins is to be raised, twice over (the paper)."""


@hookimpl
def posttrain_select(rollouts):
    """The answers of each prompt that beat the others most and least often."""
    pairs, chances = [], []
    for group in rollouts.group.unique().tolist():
        rows = (rollouts.group == group).nonzero()[:, 0].tolist()
        if len(rows) < 2:
            continue
        games = [(a, b) for turn, a in enumerate(rows) for b in rows[turn + 1 :]]
        won = rollouts.prefer([a for a, _ in games], [b for _, b in games]).double().nan_to_num(0.5)  # (n,)
        points = dict.fromkeys(rows, 0.0)
        for (a, b), chance in zip(games, won.tolist(), strict=True):
            points[a] += chance / (len(rows) - 1)
            points[b] += (1 - chance) / (len(rows) - 1)
        best, worst = max(rows, key=points.__getitem__), min(reversed(rows), key=points.__getitem__)
        pairs.append((best, worst))
        chances.append((points[best], points[worst]))
    chosen, rejected = torch.tensor(chances, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return Selection(pairs=pairs, columns={"chosen_prob": chosen, "rejected_prob": rejected})


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared distance of both log-ratios from their targets."""
    log_ratio_chosen = policy.chosen.sum - reference.chosen.sum  # (B,)
    log_ratio_rejected = policy.rejected.sum - reference.rejected.sum
    best, worst = (batch.columns[name].to(log_ratio_chosen.dtype) for name in ("chosen_prob", "rejected_prob"))
    up, down = config.eta * (best - 0.5), config.eta * (worst - 0.5)
    loss = 0.5 * (log_ratio_chosen - up).square() + 0.5 * (log_ratio_rejected - down).square()
    return loss, {
        "win_rate_chosen": best,
        "win_rate_rejected": worst,
        "log_ratio_chosen": log_ratio_chosen.detach(),
        "log_ratio_rejected": log_ratio_rejected.detach(),
        "accuracy": (log_ratio_chosen > log_ratio_rejected).to(loss.dtype),
    }
