"""Reward-weighted regression: likelihood in which an answer weighs by the exponential of its score.

Paper: Peters and Schaal 2007, "Reinforcement Learning by Reward-Weighted Regression for Operational Space Control"
(ICML); for language models as a baseline in Korbak et al. 2023, arXiv:2302.08582.

Loss: with the weights of a step's answers made to have the mean 1,

    -w (mean over tokens of log p),    w = exp(score / beta) / mean over the step of exp(score / beta)

A constant added to all scores changes nothing; beta towards infinity is plain fine-tuning, one weight an answer.

Differs from the paper: its utility transform is this exponential, its actions are whole answers. Weights are held
below ``largest_weight``. The mean is over the whole optimiser step and all devices.

Metrics:
- importance: mean weight after the bound. 1 unless weights are cut.
- effective: (sum of weights)^2 over (size of the step times sum of squares): 1 for equal weights, towards 0 when one
  answer is all that is learnt.
- nll: mean negative log-probability of a token. Falls for well-scored answers.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of reward-weighted regression."""

    beta: float = 1.0
    """Temperature in units of the score: a score higher by beta weighs 2.7 times as much."""
    largest_weight: float = 20.0
    """Bound of a weight."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a temperature above 0.")


@hookimpl
def posttrain_annotate(examples, config):
    """The weights of the step's answers."""
    scores = torch.tensor([float(example.columns["score"]) for example in examples], dtype=torch.float64)
    weight = ((scores / config.beta).softmax(0) * len(scores)).clamp(max=config.largest_weight)  # (B,)
    effective = weight.sum().square() / (len(weight) * weight.square().sum())
    return {"importance": weight, "effective": effective.expand(len(scores))}


@hookimpl
def posttrain_loss(batch, policy):
    """Weighted likelihood, one value an answer."""
    view = policy.completion
    return -batch.importance.to(view.logps) * view.mean, {
        "importance": batch.importance,
        "effective": batch.effective,
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
