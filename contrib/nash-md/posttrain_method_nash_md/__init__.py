"""Nash mirror descent: answers should be preferred to those of a mixture of the policy and the reference.

Paper: Munos et al. 2023, "Nash Learning from Human Feedback", arXiv:2312.00886, section 7 (Nash-MD-PG).

Loss in words: the opponent answers each prompt from a geometric mixture, token by token: policy^(1 - m) * reference^m.
The policy's own answer is worth how likely it is preferred to the opponent's, less one half. The loss raises the
log-probability of answers that win and lowers that of answers that lose, and charges beta times the log-ratio to the
reference. Its fixed point is the regularised Nash equilibrium of the preference: no policy is preferred to it, also
where preferences run in circles and no reward could express them.

    loss = sum over tokens of [beta * sg(log policy - log reference) - (P - 1/2)] * log policy

Differs from the paper: the paper multiplies the whole answer's log-ratio with the whole answer's log-probability;
``divergence_level`` token, the default and TRL's, pairs each token with its own log-ratio, which drops terms of
expectation 0 for earlier tokens and the influence on later ones. "sequence" is the paper. An answer without a verdict
has the divergence alone.

Metrics:
- preference: probability that the policy's answer is preferred to the mixture's. Above 0.5 while it improves, back to
  0.5 at the equilibrium.
- kl: log-ratio of a token to the reference. Starts at 0; above 1 beta is too small.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, SampleRequest, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """Weight of the divergence from the reference (TRL; tau in the paper)."""
    mixture: float = 0.5
    """Share of the reference in the opponent (TRL; the paper's best values lie between 0.125 and 0.5). 0 plays against
    itself."""
    divergence_level: Literal["token", "sequence"] = "token"
    """Whether a token is charged with its own log-ratio or with that of the whole answer."""

    def __post_init__(self) -> None:
        if not 0 <= self.mixture <= 1:
            raise ValueError(f"mixture is {self.mixture}, expected a share from 0 to 1.")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size, config):
    """The policy's answers, and an opponent for each."""
    opponents = SampleRequest(group_size, mixture=config.mixture, opponent_column="preference")
    return [[SampleRequest(group_size), opponents] for _ in prompts]


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How much more likely than not each answer is preferred to the opponent's: (B,)."""
    preference = torch.as_tensor(rollouts.columns["preference"]).to(rewards)
    return (preference - 0.5).nan_to_num(0.0)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Score-function form of the game's gradient, one value an answer."""
    view = policy.completion
    log_ratio = (view.logps - reference.completion.logps).detach()  # (B, T)
    charged = log_ratio if config.divergence_level == "token" else view.sum_of(log_ratio)[:, None].expand_as(log_ratio)
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1)
    loss = view.sum_of((config.beta * charged - advantages) * view.logps)  # (B,)
    return loss, {
        "preference": batch.advantages.reshape(len(loss), -1).mean(1) + 0.5,
        "kl": PerToken(log_ratio, view.mask),
    }
