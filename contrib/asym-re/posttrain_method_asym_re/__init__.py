"""AsymRE: off-policy REINFORCE with an asymmetric baseline.

Paper: Arnal et al. 2025, "Asymmetric REINFORCE for off-Policy Reinforcement Learning: Balancing positive and negative
rewards", arXiv:2506.20520.

Loss: -(score - V) log p of the whole answer, without importance weights, with V = mean score + delta. On data that
others wrote, a baseline at or above their mean score lets negative updates win and the policy collapse; a little
below it (delta < 0) good answers weigh more than bad ones.

Differs from the paper: the mean is that of ``group_scores``, the scores of all answers to the prompt; of rows without
this column, that of the step. Log-probabilities are sums over an answer's tokens. On answers
of the policy itself: ``asymre``.

Metrics:
- advantage: mean score - V. About -delta.
- nll: mean negative log-probability of a token. May rise: bad answers are made less likely.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of AsymRE."""

    delta: float = -0.1
    """How far the baseline lies from the mean score; above 0 training collapses."""

    def __post_init__(self) -> None:
        if self.delta > 0:
            raise ValueError(f"delta is {self.delta}, expected at most 0: a higher baseline makes the policy collapse.")


@hookimpl
def posttrain_annotate(examples, config):
    """How far each answer's score lies above the baseline of its group."""
    every = [float(example.columns["score"]) for example in examples]
    groups = [example.columns.get("group_scores") or every for example in examples]
    means = torch.tensor([sum(group) / len(group) for group in groups], dtype=torch.float64)
    return {"advantage": torch.tensor(every, dtype=torch.float64) - means - config.delta}  # (B,)


@hookimpl
def posttrain_loss(batch, policy):
    """One value an answer."""
    view = policy.completion
    return -batch.advantage.to(view.logps) * view.sum, {
        "advantage": batch.advantage,
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
